"""How far int8 should reach: everything beyond is cut off, and the closer the end, the finer the steps.

``minmax`` cuts off nothing. ``percentile`` cuts off a share of the values. ``mse`` takes the end t of least squared
error ``E[(x − q(x))²]``, ``q(x) = min(round(127|x|/t), 127)·t/127``, over a grid of ends. ``entropy`` takes the end
whose quantised distribution is closest in Kullback-Leibler divergence (Migacz, "8-bit inference with TensorRT", 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "LEVELS", "Histogram", "threshold"]

BINS = 4096
LEVELS = 127
"""Steps on either side of 0."""

_ENDS = 128
_ENTROPY_BINS = 2048
_ENTROPY_LEVELS = 128


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often |x| fell into each of equal bins from 0 to `largest`."""

    counts: NDArray[np.int64]
    largest: float


def threshold(histogram: Histogram, method: str, percentile: float = 100.0) -> float:
    """The value that 127 stands for, by ``mse``, ``entropy`` or ``percentile``."""
    width = histogram.largest / len(histogram.counts)
    if method == "percentile":
        share = np.cumsum(histogram.counts) / histogram.counts.sum()
        return width * (1 + int(np.searchsorted(share, min(percentile / 100, 1.0) - 1e-12)))
    return _least_error(histogram, width) if method == "mse" else _least_divergence(histogram)


def _least_error(histogram: Histogram, width: float) -> float:
    counts = histogram.counts.astype(np.float64)
    centres = width * (np.arange(len(counts)) + 0.5)
    # Zeros, half of what a ReLU gives, are no numbers in the middle of the first bin: they cost nothing.
    counts[0] = 0.0
    best, least = histogram.largest, np.inf
    for part in range(_ENDS, _ENDS // 8, -1):
        end = histogram.largest * part / _ENDS
        step = end / LEVELS
        rounded = np.minimum(np.round(centres / step), LEVELS) * step
        error = float((counts * (centres - rounded) ** 2).sum())
        if error < least:
            best, least = end, error
    return best


def _least_divergence(histogram: Histogram) -> float:
    counts = histogram.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1).astype(np.float64)
    counts[0] = counts[1]  # zeros say nothing about where values end
    best, least = _ENTROPY_BINS, np.inf
    for end in range(_ENTROPY_LEVELS, _ENTROPY_BINS + 1, 16):
        inside = counts[:end]
        wanted = inside.copy()
        wanted[-1] += counts[end:].sum()
        level = np.arange(end) * _ENTROPY_LEVELS // end
        filled = inside > 0
        total = np.bincount(level, inside, _ENTROPY_LEVELS)
        shared = np.bincount(level, filled, _ENTROPY_LEVELS)
        given = np.where(filled, (total / np.maximum(shared, 1))[level], 0.0)
        divergence = _divergence(wanted, given)
        if divergence < least:
            best, least = end, divergence
    return histogram.largest * best / _ENTROPY_BINS


def _divergence(wanted: NDArray[np.float64], given: NDArray[np.float64]) -> float:
    """``Σ p·log(p/q)``; where q is 0 and p is not, q counts as a little."""
    if not (wanted.sum() > 0 and given.sum() > 0):
        return np.inf
    p, q = wanted / wanted.sum(), given / given.sum()
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-9))).sum())
