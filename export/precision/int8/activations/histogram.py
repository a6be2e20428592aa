"""Histograms of |x| for the values that will be quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convbn.export.precision.int8.activations.probe import values
from convbn.export.precision.int8.activations.threshold import BINS, Histogram, threshold

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration

__all__ = ["thresholds"]

#: Bytes of values that one run of the model may hand out.
_MOST_AT_ONCE = 1 << 29


def thresholds(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    calibration: Calibration,
    *,
    method: str,
    percentile: float,
) -> dict[str, float]:
    """The value that 127 stands for, for each of these values.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`.
        tensors: names of values.
        calibration: the inputs.
        method, percentile: see :class:`convbn.export.precision.options.PrecisionOptions`.

    Raises:
        CalibrationError: onnxruntime cannot run the model on these inputs.
    """
    largest, sizes = dict.fromkeys(tensors, 0.0), dict.fromkeys(tensors, 0)
    for found in values(model, tensors, calibration):
        for name, array in zip(tensors, found, strict=True):
            largest[name] = max(largest[name], float(np.abs(array).max(initial=0.0)))
            sizes[name] = array.nbytes
    if method == "minmax":
        return largest
    chosen = dict(largest)
    for some in _parts(sizes):
        counted = {name: np.zeros(BINS, np.int64) for name in some if largest[name] > 0}
        names = list(counted)
        for found in values(model, names, calibration):
            for name, array in zip(names, found, strict=True):
                counted[name] += _counts(array, largest[name])
        chosen |= {
            name: threshold(Histogram(counts, largest[name]), method, percentile)
            for name, counts in counted.items()
        }
    return chosen


def _counts(array: NDArray[np.float32], largest: float) -> NDArray[np.int64]:
    places = (np.abs(array.reshape(-1)).astype(np.float64) * (BINS / largest)).astype(np.int64)
    return np.bincount(np.minimum(places, BINS - 1), minlength=BINS)


def _parts(sizes: Mapping[str, int]) -> list[list[str]]:
    """The values, so many at a time as memory should hold."""
    parts: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if parts[-1] and total + size > _MOST_AT_ONCE:
            parts.append([])
            total = 0
        parts[-1].append(name)
        total += size
    return parts
