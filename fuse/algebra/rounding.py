"""The one rounding: a float64 result goes back into the dtype it is stored in, or is refused.

Bound. Let u be the unit roundoff of the stored dtype. A result is accepted only if, in every output
channel, ``max|stored − exact| ≤ u · max|exact|``. For magnitudes between the dtype's smallest normal
number and its largest finite one, rounding to nearest gives exactly that; outside, weights would turn
into Inf, into zero, or into subnormals that have lost their digits, and the fold is refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, digest

__all__ = ["is_floating", "round_scaled", "round_sum", "round_vector", "stored_as", "unit_roundoff"]

Array = NDArray[Any]


class _Limits(NamedTuple):
    largest: float
    smallest_normal: float
    unit_roundoff: float


@cache
def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    # A dtype puts its name together each time it is asked for it.
    return dtype.name == "bfloat16"


@cache
def _limits(dtype: np.dtype[Any]) -> _Limits | None:
    """The limits of a floating dtype, None for any other."""
    if _is_bfloat16(dtype):
        # NumPy's finfo does not know the type that ml_dtypes adds.
        return _Limits(float(2.0**127 * (2 - 2.0**-7)), 2.0**-126, 2.0**-8)
    if dtype.kind != "f":
        return None
    info = np.finfo(dtype)
    return _Limits(float(info.max), float(info.tiny), float(info.eps) / 2)


def _to_bfloat16(exact: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """Round to bfloat16 once; a plain cast goes through float32 and may round twice.

    Rounding to odd into float32 first keeps the information that the second rounding needs (Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    nearest = exact.astype(np.float32)
    # Truncate towards zero where the nearest value overshot, then set the last bit: round to odd.
    overshot = np.abs(nearest) > np.abs(exact)
    odd = (nearest.view(np.int32) - overshot) | (nearest != exact)
    rounded: Array = odd.view(np.float32).astype(dtype)
    return rounded


_BLOCK = 1 << 15
"""Numbers that are multiplied at a time: in float64 they and their product fit a core's own cache."""


_BUFFER = 512
"""Numbers in a buffer of NumPy's: three of float64 fit a core's first cache beside what they are read from, which those
of the default size (8192) do not."""


def _multiply(weight: Array, scale: NDArray[np.float64], product: Array) -> None:
    """``weight · scale`` in float64, rounded once to the weight's dtype, into ``product``."""
    if not _is_bfloat16(weight.dtype):
        # NumPy widens to the scale's float64, multiplies and rounds a buffer at a time, with no copy of the weight.
        before = np.setbufsize(_BUFFER)
        try:
            with np.errstate(over="ignore", under="ignore"):
                np.multiply(weight, scale, out=product)
        finally:
            np.setbufsize(before)
        return
    rows = max(1, _BLOCK * weight.shape[0] // max(1, weight.size))
    for first in range(0, weight.shape[0], rows):
        part = slice(first, first + rows)
        wide = weight[part].astype(np.float64) * (scale[part] if scale.shape[0] > 1 else scale)
        product[part] = stored_as(wide, weight.dtype)


def _magnitudes(weight: Array, axes: tuple[int, ...]) -> NDArray[np.float64]:
    """``max|weight|`` over all axes but ``axes``, kept broadcastable; NaN where the weight holds one."""
    if _is_bfloat16(weight.dtype):
        weight = weight.astype(np.float32)
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    if weight.size == 0:
        return np.zeros([n if axis in axes else 1 for axis, n in enumerate(weight.shape)])
    highest = weight.max(axis=others, keepdims=True).astype(np.float64)
    lowest = weight.min(axis=others, keepdims=True).astype(np.float64)
    magnitudes: NDArray[np.float64] = np.maximum(highest, -lowest)
    return magnitudes


Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Of the largest magnitude in a channel: at least, at most; one array twice where it is known."""


def _bounds(weight: Array, axes: tuple[int, ...]) -> Bounds:
    """Where ``_magnitudes`` lies, in one pass over the weight: between ‖w‖/√n and ‖w‖ for n numbers.

    A factor of 2 either way is far more than the rounding of the sum of squares in float32.
    """
    if axes == (0,) and weight.dtype == np.float32 and weight.size and weight.flags.c_contiguous:
        rows = weight.reshape(weight.shape[0], -1)
        squares = np.einsum("ij,ij->i", rows, rows).astype(np.float64)  # einsum never warns
        if bool(((squares > _SQUARES[0]) & (squares < _SQUARES[1])).all()):
            norm = np.sqrt(squares).reshape(-1, *[1] * (weight.ndim - 1))
            return norm / (2 * np.sqrt(rows.shape[1])), 2 * norm
    exactly = _magnitudes(weight, axes)
    return exactly, exactly


_SQUARES = 1e-30, 1e30
"""Sums of squares in float32 that neither underflow nor overflow spoils."""


def _bounds_of(weight: Constant, seen: tuple[tuple[int, ...], tuple[int, ...]]) -> Bounds:
    """Where the magnitudes of a constant lie, seen in a shape and along axes; numbers are read once for it.

    Those of a product ``w·s`` lie between ``max|w|·min|s|`` and ``max|w|·max|s|``, so the product is not computed.
    A factor of 2 either way is more than what rounding does.
    """
    least, most, at = 0.5, 2.0, weight
    while at.product is not None and seen not in at.magnitudes:
        at, _, scale = at.product
        sizes = np.abs(scale)
        least, most = least * float(sizes.min(initial=np.inf)), most * float(sizes.max(initial=0))
    known = at.magnitudes.get(seen)
    if known is None:
        known = at.magnitudes[seen] = _bounds(_numbers(at).reshape(seen[0]), seen[1])
    if at is not weight:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            known = weight.magnitudes[seen] = known[0] * least, known[1] * most
    return known


def _factors(weight: Constant) -> tuple[Constant, list[tuple[tuple[int, ...], NDArray[np.float64]]]]:
    """What a product is made of: a constant that is none, and what it is multiplied by, from left to right."""
    factors = []
    while weight.product is not None:
        weight, shape, scale = weight.product
        factors.append((shape, scale))
    return weight, factors[::-1]


def _exact_product(scaled: Constant) -> NDArray[np.float64]:
    """``w·s₁·s₂ …`` in float64, from left to right."""
    base, factors = _factors(scaled)
    product = base.exact()
    with np.errstate(under="ignore"):
        for place, (shape, scale) in enumerate(factors):
            product = product.reshape(shape)
            # The numbers that a constant gives are not to be written to, those of the first product are.
            product = np.multiply(product, scale, out=product if place else None)
    return product.reshape(base.shape)


def round_scaled(
    weight: Constant,
    scale: NDArray[np.float64],
    axes: tuple[int, ...],
    *,
    seen_as: tuple[int, ...] | None = None,
) -> Constant | Refusal:
    """``W' = W·s``, in the dtype of ``W``.

    Args:
        weight: the stored weight, of any floating dtype.
        scale: float64, of the weight's rank, and of size 1 along every axis but ``axes``.
        axes: the axes that count the output channels.
        seen_as: the shape in which ``scale`` and ``axes`` see the weight, if it is not its own.

    Returns:
        The scaled weight, or a refusal where the bound of this module cannot be kept.
    """
    shape = weight.shape if seen_as is None else seen_as
    dtype = weight.dtype
    limits = _limits(dtype)
    if limits is None:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"the weight is stored as {dtype}, not as a float")
    seen, size = (tuple(shape), tuple(axes)), np.abs(scale)
    bounds = _bounds_of(weight, seen)
    if not _clearly_inside(bounds, size, limits):
        if bounds[0] is not bounds[1]:
            exactly = _magnitudes(_numbers(weight).reshape(shape), axes)
            bounds = weight.magnitudes[seen] = exactly, exactly
        refusal = _outside(bounds[1], size, limits, dtype)
        if refusal is not None:
            return refusal

    def exact() -> NDArray[np.float64]:
        return _exact_product(scaled)

    def load() -> Array:
        if weight.folded:
            return stored_as(exact(), dtype)
        product = np.empty(weight.shape, dtype)
        write(product)
        return product

    def write(target: Array) -> None:
        if weight.folded:
            target[...] = stored_as(exact(), dtype)
        else:
            _multiply(weight.array().reshape(shape), scale, target.reshape(shape))

    def key() -> Hashable:
        base, factors = _factors(scaled)
        return base.key, tuple((seen_in, factor.shape, digest(factor)) for seen_in, factor in factors)

    sources = [_factors(weight)[0]]
    scaled = Constant(weight.shape, load, exact=exact, dtype=dtype, write=write, sources=sources, key=key)
    scaled.product = weight, tuple(shape), scale
    # What is folded into it next is computed from the exact numbers, so theirs are the magnitudes to know.
    low, high = bounds
    above = high * size
    scaled.magnitudes[seen] = (above if low is high else low * size), above
    return scaled


def _numbers(weight: Constant) -> Array:
    """What the next product is computed from: rounded, a channel can vanish that exactly has not."""
    return weight.exact() if weight.folded else weight.array()


def _clearly_inside(bounds: Bounds, size: NDArray[np.float64], limits: _Limits) -> bool:
    """Whether no channel can leave the range of the dtype, however exact its magnitude is known."""
    low, high = bounds
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        fits = (high * size <= limits.largest) & (low * size >= limits.smallest_normal)
    return bool(fits.all())


def _outside(
    before: NDArray[np.float64], size: NDArray[np.float64], limits: _Limits, dtype: np.dtype[Any]
) -> Refusal | None:
    """The refusal where the bound cannot be kept, from the exact magnitudes of weights and scales."""
    if not np.isfinite(before).all():
        return Refusal(Reason.BAD_STATISTICS, "the weight holds Inf or NaN")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        after = before * size
    # The largest finite number still catches what rounds down to it: half a unit in its last place.
    too_large = ~(after <= limits.largest * (1 + limits.unit_roundoff / 2))
    if too_large.any():
        return Refusal(
            Reason.OUT_OF_RANGE,
            f"{_of(too_large)} the folded weights would exceed {limits.largest:.3g}, the largest {dtype}",
        )
    # `after == 0` with both factors non-zero is float64's own underflow.
    too_small = (after < limits.smallest_normal) & (before != 0) & (size != 0)
    if too_small.any():
        return Refusal(
            Reason.OUT_OF_RANGE,
            f"{_of(too_small)} the folded weights would fall below {limits.smallest_normal:.3g}, "
            f"where {dtype} loses its digits",
        )
    return None


def round_vector(exact: NDArray[np.float64], dtype: np.dtype[Any], what: str = "bias") -> Constant | Refusal:
    """A bias or another small tensor that was computed in float64, stored in ``dtype``.

    Args:
        exact: of any shape.
        dtype: what it is to be stored in.
        what: what it is, for the refusal.

    Returns:
        The constant, or a refusal where a number would not be finite.
    """
    limits = _limits(dtype)
    if limits is None:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"the {what} is stored as {dtype}, not as a float")
    bound = limits.largest * (1 + limits.unit_roundoff / 2)
    # Two passes that answer at once where all is well; of NaN both are.
    if not (exact.max(initial=0) <= bound and exact.min(initial=0) >= -bound):
        if not np.isfinite(exact).all():
            return Refusal(Reason.BAD_STATISTICS, f"the folded {what} holds Inf or NaN")
        return Refusal(
            Reason.OUT_OF_RANGE,
            f"{_of(np.abs(exact) > bound)} the folded {what} would exceed {limits.largest:.3g}, the largest {dtype}",
        )
    return Constant(
        exact.shape,
        lambda: stored_as(exact, dtype),
        exact=lambda: exact,
        dtype=dtype,
        key=lambda: digest(exact),
    )


def round_sum(
    exact: NDArray[np.float64], dtype: np.dtype[Any], axis: int = 0, what: str = "weight"
) -> Constant | Refusal:
    """A weight or a factor that was computed in float64, stored in ``dtype``.

    Args:
        exact: its channels along ``axis``.
        dtype: what it is to be stored in.
        axis: below 0, it is the same for all channels.
        what: what it is, for the refusal.

    Returns:
        The weight, or a refusal where the bound of this module cannot be kept.
    """
    limits = _limits(dtype)
    rounded = round_vector(exact, dtype, what)
    if limits is None or isinstance(rounded, Refusal):
        return rounded
    largest = _magnitudes(exact, (axis,))
    too_small = (largest < limits.smallest_normal) & (largest != 0)
    if too_small.any():
        return Refusal(
            Reason.OUT_OF_RANGE,
            f"{_of(too_small)} the folded {what}s would fall below {limits.smallest_normal:.3g}, "
            f"where {dtype} loses its digits",
        )
    return rounded


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether numbers can be rounded to this type: NumPy's floats and bfloat16."""
    return _limits(dtype) is not None


def unit_roundoff(dtype: np.dtype[Any]) -> float | None:
    """The ``u`` of this module's bound, half the distance from 1 to the next number; None if no float."""
    limits = _limits(dtype)
    return None if limits is None else limits.unit_roundoff


def stored_as(exact: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """The numbers rounded to nearest, with no look at what becomes of them."""
    with np.errstate(over="ignore", under="ignore"):
        return _to_bfloat16(exact, dtype) if _is_bfloat16(dtype) else exact.astype(dtype)


def _of(channels: NDArray[np.bool_]) -> str:
    count = int(np.count_nonzero(channels))
    return f"in {count} of {channels.size} channels,"
