"""How alike two sets of outputs are, over all their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convbn.bench.equivalence.tolerance import Tolerance
from convbn.bench.models.inputs import Array
from convbn.common.encoding import JsonReady
from convbn.common.progress import Progress
from convbn.export.precision.int8.activations.probe import values

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration

__all__ = [
    "LOUD",
    "REFUSED",
    "Agreement",
    "agreement",
    "likeness",
    "objection",
    "ratio",
    "top1_agreement",
    "warning",
]

#: Share of rows with the same class below which a model is written with a warning, and below which it is not.
LOUD, REFUSED = 0.99, 0.90


def likeness(a: Sequence[Array], b: Sequence[Array]) -> tuple[float, float | None]:
    """‖a − b‖ / ‖a‖ and the cosine ⟨a, b⟩ / (‖a‖ ‖b‖); None where one of them is zero.

    Args:
        a: float64 or complex128 arrays, finite.
        b: likewise, of the same shapes.
    """
    # In units of the largest value, so that no square leaves float64.
    unit = max((float(np.abs(x).max(initial=0.0)) for x in (*a, *b)), default=0.0) or 1.0
    aa = sum(float(np.sum(np.abs(x / unit) ** 2)) for x in a)
    bb = sum(float(np.sum(np.abs(y / unit) ** 2)) for y in b)
    ab = sum(float(np.sum((x / unit) * np.conj(y / unit)).real) for x, y in zip(a, b, strict=True))
    gap = sum(float(np.sum(np.abs((x - y) / unit) ** 2)) for x, y in zip(a, b, strict=True))
    cosine = ab / math.sqrt(aa * bb) if aa > 0 and bb > 0 else None
    return ratio(math.sqrt(gap), math.sqrt(aa)), cosine


def top1_agreement(a: Sequence[Array], b: Sequence[Array]) -> float | None:
    """Share of the rows whose largest value is in the same column; None where the shape is not [rows, classes]."""
    if any(x.ndim != 2 or x.shape[1] < 2 or x.shape[0] == 0 for x in a):
        return None
    same = [x.argmax(axis=1) == y.argmax(axis=1) for x, y in zip(a, b, strict=True)]
    return float(np.concatenate(same).mean())


def ratio(gap: float, level: float) -> float:
    """``gap / level``, 0 where there is no gap, infinite where there is a gap and no level."""
    if gap == 0.0:
        return 0.0
    return gap / level if level > 0.0 else math.inf


@dataclass(frozen=True, slots=True)
class Agreement(JsonReady):
    """One output b of the candidate beside that of the reference a, over all inputs.

    Attributes:
        name: of the output.
        rms_error: ‖a − b‖ / ‖a‖.
        cosine: ⟨a, b⟩ / (‖a‖ ‖b‖); None where one of them is zero.
        top1_agreement: share of the rows with the same largest value, for outputs of shape [rows, 2 or more classes].
    """

    name: str
    rms_error: float
    cosine: float | None
    top1_agreement: float | None


def agreement(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    calibration: Calibration,
    progress: Progress | None = None,
) -> tuple[Agreement, ...]:
    """Compare the float outputs of two models.

    Args:
        reference: the float one.
        candidate: with the same outputs.
        calibration: the inputs, all of which are run.
        progress: is told of each.

    Raises:
        CalibrationError: onnxruntime cannot run one of them.
    """
    names = [value.name for value in reference.graph.output]
    sums = np.zeros((len(names), 4))
    shares: list[list[float]] = [[] for _ in names]
    weights: list[list[int]] = [[] for _ in names]
    floats = [False] * len(names)
    runs = (
        values(reference, None, calibration),
        values(candidate, names, calibration, phase="comparing", progress=progress),
    )
    for ours, theirs in zip(*runs, strict=True):
        for index, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            if x.dtype.kind != "f" or x.shape != y.shape:
                continue
            floats[index] = True
            a, b = x.astype(np.float64), y.astype(np.float64)
            gap = np.where(a == b, 0.0, a - b)
            sums[index] += [(gap**2).sum(), (a**2).sum(), (b**2).sum(), (a * b).sum()]
            share = top1_agreement([a], [b])
            if share is not None:
                shares[index].append(share)
                weights[index].append(len(a))
    return tuple(
        _row(name, sums[index], shares[index], weights[index])
        for index, name in enumerate(names)
        if floats[index]
    )


def _row(name: str, sums: np.ndarray, shares: list[float], weights: list[int]) -> Agreement:
    gap, aa, bb, ab = (float(number) for number in sums)
    rms = ratio(math.sqrt(gap), math.sqrt(aa)) if math.isfinite(gap) and math.isfinite(aa) else math.inf
    cosine = ab / math.sqrt(aa * bb) if aa > 0 and bb > 0 and math.isfinite(aa * bb) else None
    return Agreement(name, rms, cosine, float(np.average(shares, weights=weights)) if shares else None)


def objection(outputs: tuple[Agreement, ...], tolerance: Tolerance, least_share: float | None) -> str | None:
    """Why the outputs are too far apart, None if they are not.

    Args:
        outputs: of :func:`agreement`.
        tolerance: of the precision; its bound counts where it is one for RMS errors.
        least_share: of rows with the same class; None for any.
    """
    for output in outputs:
        if tolerance.norm == "rms" and not output.rms_error <= tolerance.bound:
            told = f"relative RMS error {output.rms_error:.2g} is over the bound {tolerance.bound:.2g}"
            return f"output {output.name!r}: {told}"
        share = output.top1_agreement
        if least_share is not None and share is not None and share < least_share:
            return f"output {output.name!r}: only {share:.1%} of the rows keep their class, and {least_share:.0%} must"
    return None


def warning(outputs: tuple[Agreement, ...]) -> str | None:
    """What must be said of outputs that change too many classes, None where they do not."""
    worst = min(outputs, key=lambda o: 1.0 if o.top1_agreement is None else o.top1_agreement, default=None)
    if worst is None or worst.top1_agreement is None or worst.top1_agreement >= LOUD:
        return None
    return (
        f"output {worst.name!r} gives another class for {1 - worst.top1_agreement:.1%} of the rows; measure the "
        "accuracy, or keep the worst layers in float32, --keep-fp32 auto"
    )
