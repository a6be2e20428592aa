"""The arithmetic of a comparison: how far outputs are apart, and whether that proves anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from convbn.bench.equivalence.noise import (
    BLIND,
    BLIND_CONVERTED,
    BOUND_16_BIT,
    NOISE_MULTIPLE,
    by_channel,
    multiple_of,
    noise_by_channel,
)
from convbn.bench.equivalence.similarity import likeness, ratio, top1_agreement
from convbn.bench.equivalence.tolerance import Tolerance, bound_of
from convbn.bench.models.inputs import Array
from convbn.bench.models.outputs import in_the_kind_of
from convbn.common.dtypes import is_float
from convbn.common.encoding import JsonReady

__all__ = ["Moved", "OutputDifference", "Status", "Verdict", "has_nonfinite", "judge"]

Status: TypeAlias = Literal["equal", "different", "inconclusive"]
#: The number of a sample, and the reference's outputs for it, moved by what rounding may move it.
Moved: TypeAlias = tuple[int, Sequence[Array]]

#: A channel needs this many values before its root mean square says something about it.
MIN_CHANNEL_VALUES = 8
#: Rounding reaches every channel with some ε of the largest value anywhere, however weak the channel. This
#: many ε are let through: correct folds of a 34-layer network showed up to 5 in float32, and up to 2 in the
#: 16-bit types, whose sums are kept in float32.
CHANNEL_NOISE, CHANNEL_NOISE_16_BIT = 16, 4


@dataclass(frozen=True)
class OutputDifference(JsonReady):
    """How far one output of the candidate b is from that of the reference a, over all samples.

    Attributes:
        name: of the output in the reference.
        dtype: of the reference's output.
        shape: of the first sample.
        max_abs_error: max |a − b|, in the output's own unit.
        rel_error: max |a − b| / max |a|.
        worst_channel_error: the largest over the channels c (axis 1) of
            max |a_c − b_c| / max(max |a_c − mean(a_c)|, k √ε max |a|), k = 16, or 4 for 16-bit types; with the bound
            √ε a channel may be off by √ε of what it varies by, or by k ε of the largest value anywhere.
            None below rank 2 or 8 values a channel.
        bound: what both relative errors may reach, or `rms_error` where the tolerance is of that norm; 0 for
            integers and booleans.
        ok: within the bound, or within NOISE_MULTIPLE times the noise.
        rms_error: ‖a − b‖ / ‖a‖ over all values; None for integers and booleans.
        cosine: ⟨a, b⟩ / (‖a‖ ‖b‖); None where one of them is zero, and for integers and booleans.
        top1_agreement: share of the rows with the same largest value, for outputs that look like a
            classifier's: floats of shape [rows, 2 or more classes].
        noise: max |a − a'| / max |a|, where a' is the reference again with its inputs moved by one unit in the
            last place, or as its runtime optimises it; of integers and booleans the share that changes. None
            where it was not looked at.
        noisy: whether it is equal only beside that noise.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    max_abs_error: float
    rel_error: float
    worst_channel_error: float | None
    bound: float
    ok: bool
    rms_error: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    noise: float | None = None
    noisy: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the outputs show. ``reason`` is one sentence."""

    status: Status
    reason: str
    outputs: tuple[OutputDifference, ...] = ()


def has_nonfinite(samples: Sequence[Sequence[Array]]) -> bool:
    """Whether any float output of any sample holds NaN or infinity."""
    return any(not _finite(array).all() for outputs in samples for array in outputs)


def judge(
    names: Sequence[str],
    reference: Sequence[Sequence[Array]],
    candidate: Sequence[Sequence[Array]],
    *,
    computed_in: Sequence[str | None] = (),
    inputs_differ: bool,
    tolerance: Tolerance | None = None,
    moved: Sequence[Moved] = (),
) -> Verdict:
    """Compare outputs and say whether they are equal, different, or prove nothing.

    Args:
        names: the reference's outputs.
        reference: outputs by sample, then by output.
        candidate: the same from the other model, for the same inputs.
        computed_in: float types that the models or the runtime compute in besides the output's.
        inputs_differ: whether the samples had different inputs.
        tolerance: of a candidate in another precision, whose float outputs may then be of another type too.
            Without it the bound follows from `computed_in` and the outputs.
        moved: outputs of the reference, moved by what rounding may move them.

    Returns:
        "different" before "inconclusive" before "equal".
    """
    counts = {len(outputs) for outputs in candidate} | {len(outputs) for outputs in reference}
    if len(counts) > 1:
        have = f"{len(reference[0])} outputs against {len(candidate[0])}"
        return Verdict("different", f"the number of outputs differs: {have}")
    if not names:
        return Verdict("inconclusive", "the reference has no outputs")
    pairs = [
        (
            [outputs[i] for outputs in reference],
            [in_the_kind_of(known[i], made[i]) for known, made in zip(reference, candidate, strict=True)],
        )
        for i in range(len(names))
    ]
    for name, (a, b) in zip(names, pairs, strict=True):
        mismatch = _mismatch(a, b, same_floats=tolerance is None)
        if mismatch:
            return Verdict("different", f"output {name!r} {mismatch}")
    outputs = tuple(
        _difference(name, a, b, computed_in, tolerance, [(sample, run[i]) for sample, run in moved])
        for i, (name, (a, b)) in enumerate(zip(names, pairs, strict=True))
    )
    wrong = [output for output in outputs if not output.ok]
    if wrong:
        return Verdict("different", _why(wrong, tolerance), outputs)
    most = BLIND if tolerance is None else BLIND_CONVERTED
    blind = [
        output
        for output in outputs
        if output.noisy and multiple_of(output.bound, tolerance) * (output.noise or 0.0) > most
    ]
    if blind:
        return Verdict("inconclusive", _why_blind(blind[0]), outputs)
    for name, (a, _) in zip(names, pairs, strict=True):
        vacuous = _vacuous(a)
        if vacuous:
            return Verdict("inconclusive", f"output {name!r} {vacuous}", outputs)
    if inputs_differ and len(reference) > 1 and all(_all_same(a) for a, _ in pairs):
        return Verdict(
            "inconclusive", "different inputs give the same outputs, so any model would do", outputs
        )
    worst = max(outputs, key=lambda output: _judged(output, tolerance))
    noise = "" if worst.noise is None else f", noise of the original {worst.noise:.2g}"
    return Verdict(
        "equal",
        f"largest relative {_NOUNS[tolerance.norm if tolerance else 'max']} {_judged(worst, tolerance):.2g} "
        f"(output {worst.name!r}), bound {worst.bound:.2g}{noise}",
        outputs,
    )


def _mismatch(reference: Sequence[Array], candidate: Sequence[Array], *, same_floats: bool) -> str | None:
    for a, b in zip(reference, candidate, strict=True):
        if a.shape != b.shape:
            chosen = " (a choice by value, such as NMS, kept another number)" if a.ndim == b.ndim else ""
            return f"has shape {list(a.shape)} in the reference and {list(b.shape)} in the candidate{chosen}"
        both_floats = is_float(a.dtype) and is_float(b.dtype)
        if a.dtype != b.dtype and (same_floats or not both_floats):
            return f"is {a.dtype.name} in the reference and {b.dtype.name} in the candidate"
        for label, test in (("NaN", np.isnan), ("infinite values", np.isinf)):
            if _continuous(a.dtype) and not np.array_equal(test(a), test(b)):
                return f"has {label} in only one of the two models"
    return None


def _difference(
    name: str,
    reference: Sequence[Array],
    candidate: Sequence[Array],
    computed_in: Sequence[str | None],
    tolerance: Tolerance | None,
    moved: Sequence[tuple[int, Array]],
) -> OutputDifference:
    first = reference[0]
    moved = [(i, other) for i, other in moved if other.shape == reference[i].shape]
    if not _continuous(first.dtype):
        return _discrete(name, reference, candidate, moved)
    a = [_wide(array) for array in reference]
    b = [_wide(array) for array in candidate]
    largest = max((float(np.abs(x).max(initial=0.0)) for x in a), default=0.0)
    gap = max(float(np.abs(x - y).max(initial=0.0)) for x, y in zip(a, b, strict=True))
    bound = bound_of(_real(first.dtype), *computed_in) if tolerance is None else tolerance.bound
    coarse = bound > BOUND_16_BIT
    floor = (CHANNEL_NOISE_16_BIT if coarse else CHANNEL_NOISE) * bound * largest
    multiple = multiple_of(bound, tolerance)
    shifts = [np.abs(a[i] - _wide(other)) for i, other in moved]
    noise = max((float(shift.max(initial=0.0)) for shift in shifts), default=0.0)
    channels = _channels(a, b, floor)
    relative = ratio(gap, largest)
    rms, cosine = likeness(a, b)
    within = relative <= bound
    beside = gap <= max(bound * largest, multiple * noise)
    channel = None
    if channels is not None:
        gaps, levels = channels
        channel = max((ratio(float(g), float(s)) for g, s in zip(gaps, levels, strict=True)), default=0.0)
        within = within and channel <= bound
        allowed = np.maximum(bound * levels, multiple * noise_by_channel(shifts, len(levels)))
        beside = beside and bool((gaps <= allowed).all())
    if tolerance is not None and tolerance.norm == "rms":
        within = beside = rms <= bound
    return OutputDifference(
        name,
        first.dtype.name,
        first.shape,
        gap,
        relative,
        channel,
        bound,
        beside,
        rms,
        cosine,
        top1_agreement(a, b) if is_float(first.dtype) else None,
        ratio(noise, largest) if moved else None,
        beside and not within,
    )


def _discrete(
    name: str, reference: Sequence[Array], candidate: Sequence[Array], moved: Sequence[tuple[int, Array]]
) -> OutputDifference:
    """Integers and booleans are the same or not; where rounding alone changes some, so many may be."""
    first = reference[0]
    same = all(np.array_equal(a, b) for a, b in zip(reference, candidate, strict=True))
    gap = 0.0 if same else _largest_gap(reference, candidate)
    share = max((_share(reference[i], other) for i, other in moved), default=0.0)
    off = max(_share(a, b) for a, b in zip(reference, candidate, strict=True))
    noisy = not same and 0.0 < off <= NOISE_MULTIPLE * share
    error = 0.0 if same else math.inf
    noise = share if moved else None
    return OutputDifference(
        name, first.dtype.name, first.shape, gap, error, None, 0.0, same or noisy, noise=noise, noisy=noisy
    )


def _share(a: Array, b: Array) -> float:
    return float(np.mean(a != b)) if a.size else 0.0


def _channels(a: Sequence[Array], b: Sequence[Array], floor: float) -> tuple[Array, Array] | None:
    """The largest gap of each channel, and what it varies by."""
    if a[0].ndim < 2 or len({x.shape[1] for x in a}) != 1 or a[0].shape[1] == 0:
        return None
    rows = [np.concatenate([by_channel(x) for x in side], axis=1) for side in (a, b)]
    if rows[0].shape[1] < MIN_CHANNEL_VALUES:
        return None
    spread = np.abs(rows[0] - rows[0].mean(axis=1, keepdims=True)).max(axis=1)
    return np.abs(rows[0] - rows[1]).max(axis=1), np.maximum(spread, floor)


def _vacuous(samples: Sequence[Array]) -> str | None:
    if not _continuous(samples[0].dtype):
        return None
    if not all(_finite(array).all() for array in samples):
        return "holds NaN or infinity, so it cannot be compared there"
    values = [_wide(array) for array in samples if array.size]
    if not values:
        return "is empty"
    if samples[0].dtype.kind == "c":
        values = [np.abs(array) for array in values]
    low = min(float(array.min()) for array in values)
    high = max(float(array.max()) for array in values)
    return f"is {low:g} everywhere, which any model can give" if low == high else None


def _all_same(samples: Sequence[Array]) -> bool:
    return all(np.array_equal(samples[0], other, equal_nan=False) for other in samples[1:])


def _finite(array: Array) -> Array:
    return np.isfinite(array) if _continuous(array.dtype) else np.ones((), dtype=bool)


def _wide(array: Array) -> Array:
    # Where both sides are NaN or infinite alike (checked before), nothing is left to subtract.
    return np.where(_finite(array), array, 0).astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _continuous(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind == "c" or is_float(dtype)


def _real(dtype: np.dtype[np.generic]) -> str:
    """The float type of a complex one's parts, or the type itself."""
    return f"float{dtype.itemsize * 4}" if dtype.kind == "c" else dtype.name


def _largest_gap(reference: Sequence[Array], candidate: Sequence[Array]) -> float:
    if reference[0].dtype.kind not in "iub":
        return math.inf
    return max(
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))
        for a, b in zip(reference, candidate, strict=True)
    )


def _why_blind(output: OutputDifference) -> str:
    return (
        f"output {output.name!r}: relative error {output.rel_error:.2g} is beside the original's own noise of "
        f"{output.noise or 0.0:.2g}, which would hide a wrong model as well"
    )


_NOUNS = {"max": "error", "rms": "RMS error"}


def _judged(output: OutputDifference, tolerance: Tolerance | None) -> float:
    """The error that the bound is for."""
    if tolerance is not None and tolerance.norm == "rms" and output.rms_error is not None:
        return output.rms_error
    return output.rel_error


def _why(wrong: Sequence[OutputDifference], tolerance: Tolerance | None) -> str:
    worst = max(wrong, key=lambda output: _judged(output, tolerance))
    error = _judged(worst, tolerance)
    if worst.bound == 0.0:
        return f"output {worst.name!r} ({worst.dtype}) must be identical and is not"
    if error > worst.bound:
        noun = _NOUNS[tolerance.norm if tolerance else "max"]
        return f"output {worst.name!r}: relative {noun} {error:.2g} is over the bound {worst.bound:.2g}"
    return (
        f"output {worst.name!r}: error {worst.worst_channel_error:.2g} of its worst channel "
        f"is over the bound {worst.bound:.2g}"
    )
