"""How alike two sets of outputs are, over all their values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convbn.bench.models.inputs import Array

__all__ = ["likeness", "ratio", "top1_agreement"]


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
