"""How far one value of the folded model is from the original's, and what rounding alone may do.

A difference is split by channel into its mean and what is left. A stored bias that is rounded moves the mean alone:
beside a bias of 1e6 the rest still has to be as close as the weights allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convbn.bench.models.inputs import Array
from convbn.bench.proof.regions import LinearLayer
from convbn.common.dtypes import dtype_of, is_float

__all__ = [
    "Bound",
    "Gap",
    "beyond",
    "epsilon",
    "floor_bound",
    "gap_of",
    "layer_bound",
    "noise_bound",
    "relative_gap",
    "rounding_bound",
    "spoil_of",
    "unit_of",
]

#: The deliberate error by which a comparison shows that it could have failed.
SPOIL = 0.01
_MARGIN, _NOISE_MARGIN = 4.0, 8.0
#: Values of a channel below which its noise may be small by chance; then it is no less than that of half of them.
_FEW = 64
_FLOAT32 = 2.0**-23
#: Of what a bias is off by, what is left in float64 where the mean of so many equal numbers is taken from them.
_EVEN = 2.0**-20


@dataclass(frozen=True, eq=False)
class Bound:
    """What a difference may be, by channel: its mean, and what is left without it."""

    mean: Array
    rest: Array
    axis: int


@dataclass(frozen=True)
class Gap:
    """A difference beside its bound, for the channel that comes closest to it.

    Attributes:
        ok: within the bound.
        error, bound: in units of the channel's largest value.
        sight: how many times over the bound an error of 1 % in the scale would stand.
    """

    ok: bool
    error: float
    bound: float
    sight: float


def layer_bound(layer: LinearLayer, data: Array, unit: float, *, sums: bool) -> Bound:
    """How far the output of one layer may be off.

    Args:
        layer: the layer.
        data: its input.
        unit: ε of the type that it is computed in.
        sums: whether the sums are rounded as well as the stored numbers.
    """
    # A quiet channel beside a loud one of another group is no less exact for that.
    of_group = _peaks(data, 1).reshape(layer.groups, -1).max(axis=1)
    largest = np.repeat(of_group, len(layer.norms) // layer.groups)
    stored = epsilon(layer.dtype) / 2
    rounded = unit if sums else 0.0
    weights = _MARGIN * (stored + rounded * math.sqrt(layer.terms)) * layer.norms * largest
    bias = 2 * (stored + rounded) * np.abs(layer.bias)
    return Bound(weights + bias, 2 * weights + (1.0 if sums else _EVEN) * bias, layer.axis)


def rounding_bound(layer: LinearLayer, reach: Array) -> Bound:
    """The most that the rounding of a layer's numbers can do, as where all its weights are the same and err one way.

    Args:
        layer: the layer.
        reach: ``Σ |W_ck| |x_k|``, wherever the layer gives a value.
    """
    stored = epsilon(layer.dtype)  # twice what rounding does
    weights = stored * _peaks(reach, layer.axis)
    bias = stored * np.abs(layer.bias)
    return Bound(weights + bias, 2 * weights + _EVEN * bias, layer.axis)


def noise_bound(b: Array, moved: Sequence[Array], root_of_terms: float, unit: float) -> Bound:
    """How far a value may be off that moves by so much where its numbers are moved.

    Args:
        b: the value.
        moved: the same, moved.
        root_of_terms: √K of the longest sum where sums are rounded too, else 1.
        unit: ε of what is stored or computed.
    """
    if not _continuous(b):
        share = max((float(np.mean(b != other)) for other in moved), default=0.0)
        return Bound(np.asarray(_NOISE_MARGIN * share), np.zeros(()), 1)
    means, rests = zip(*(_split(b, other, 1) for other in moved), strict=True)
    mean, rest = np.max(means, axis=0), np.max(rests, axis=0)
    if b.size < _FEW * len(mean):
        mean, rest = np.maximum(mean, np.median(mean)), np.maximum(rest, np.median(rest))
    floor = 4 * unit * _peaks(b, 1)
    scale = _NOISE_MARGIN * root_of_terms
    return Bound(scale * (mean + rest) + floor, scale * rest + floor, 1)


def floor_bound(b: Array, unit: float) -> Bound:
    """A few units in the last place."""
    floor = unit * _peaks(b, 1) if _continuous(b) else np.zeros(())
    return Bound(floor, floor, 1)


def gap_of(a: Array, b: Array, bound: Bound, layer: LinearLayer | None = None) -> Gap:
    """The difference between two values beside its bound.

    Args:
        a: the original's.
        b: the folded model's.
        bound: what the difference may be.
        layer: that gives b, where it is one: an error of its scale has no part in its bias.
    """
    if a.shape != b.shape or _continuous(a) != _continuous(b):
        return Gap(False, math.inf, 0.0, 0.0)
    if not _continuous(a):
        share, most = float(np.mean(a != b)) if a.size else 0.0, float(np.max(bound.mean, initial=0.0))
        return Gap(share <= most, share, most, 0.0)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return Gap(False, math.inf, 0.0, 0.0)
    if not a.size:
        return Gap(True, 0.0, 0.0, 0.0)
    mean, rest = _split(a, b, bound.axis)
    rows = _by_channel(_plain(b), bound.axis)
    level = np.abs(rows).max(axis=1)
    scaled = np.abs(rows - (0.0 if layer is None else layer.bias[:, None])).max(axis=1)
    tiny = np.finfo(np.float64).tiny
    means = np.broadcast_to(np.maximum(bound.mean, tiny), mean.shape)
    rests = np.broadcast_to(np.maximum(bound.rest, tiny), mean.shape)
    with np.errstate(over="ignore"):  # of a bound of 0
        of_mean = mean / means >= rest / rests
        gaps, bounds = np.where(of_mean, mean, rest), np.where(of_mean, means, rests)
        worst = int(np.argmax(gaps / bounds))
        # Of one value a channel the mean is all there is.
        spoil = spoil_of(a.dtype if layer is None else layer.dtype)
        sight = float((spoil * scaled / (rests if rows.shape[1] > 1 else means)).max())
    unit = float(level[worst]) or 1.0
    ok = bool((mean <= means).all() and (rest <= rests).all())
    return Gap(ok, float(gaps[worst]) / unit, float(bounds[worst]) / unit, sight)


def beyond(base: Array, spoilt: Array, bound: Bound) -> bool:
    """Whether a deliberate error shows over the bound."""
    return not gap_of(base, spoilt, bound).ok


def relative_gap(a: Array, b: Array) -> float:
    """max |a − b| / max |a|; infinite where they cannot be compared."""
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return math.inf
    gap = float(np.abs(_plain(a) - _plain(b)).max(initial=0.0))
    return gap if gap == 0.0 else gap / (float(np.abs(_plain(a)).max()) or gap)


def spoil_of(dtype: np.dtype[np.generic]) -> float:
    """The deliberate error: 1 %, or what 16 bits can tell."""
    return max(SPOIL, 16 * epsilon(dtype))


def unit_of(array: Array) -> float:
    """ε of a value's type; of integers that of float32, in which they were computed."""
    return epsilon(array.dtype)


def epsilon(dtype: np.dtype[np.generic]) -> float:
    """The gap between 1 and the next number of a type."""
    import ml_dtypes

    if dtype.kind == "c":
        return _FLOAT32 if dtype.itemsize == 8 else 2.0**-52
    return float(ml_dtypes.finfo(dtype_of(dtype.name)).eps) if is_float(dtype) else _FLOAT32


def _continuous(array: Array) -> bool:
    return array.dtype.kind == "c" or is_float(array.dtype)


def _plain(array: Array) -> Array:
    wide = array if array.dtype.kind == "c" else array.astype(np.float64)
    plain: Array = np.where(np.isfinite(wide), wide, 0)
    return plain


def _split(a: Array, b: Array, axis: int) -> tuple[Array, Array]:
    """By channel, the size of the mean difference and of the largest left without it."""
    rows = _by_channel(_plain(a) - _plain(b), axis)
    mean = rows.mean(axis=1) if rows.shape[1] else np.zeros(len(rows))
    return np.abs(mean), np.abs(rows - mean[:, None]).max(axis=1, initial=0.0)


def _peaks(array: Array, axis: int) -> Array:
    """The largest size in each channel."""
    peaks: Array = np.abs(_by_channel(_plain(array), axis)).max(axis=1, initial=0.0)
    return peaks


def _by_channel(array: Array, axis: int) -> Array:
    if array.ndim < 2:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
