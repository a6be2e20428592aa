"""Constants that meet a value by broadcasting, seen along one axis of it.

The trap: against ``[N, C, H, W]`` a constant ``[C]`` lies along W, and where W == C only the shape rule tells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["along", "per_channel", "shaped"]


def per_channel(shape: tuple[int, ...], rank: int) -> int | None:
    """The one axis of a value of this rank along which a constant of this shape varies.

    Returns:
        The axis; -1 where the constant is one number; None where it varies along several axes or has a
        higher rank than the value.
    """
    if len(shape) > rank:
        return None
    varying = [axis + rank - len(shape) for axis, size in enumerate(shape) if size != 1]
    return None if len(varying) > 1 else varying[0] if varying else -1


def along(vector: NDArray[np.float64], axis: int, rank: int) -> NDArray[np.float64]:
    """A vector shaped so that it broadcasts along ``axis`` of a value of ``rank``."""
    return vector.reshape([vector.size if i == axis else 1 for i in range(rank)])


def shaped(constant: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """A per-channel constant as a vector of ``size`` numbers."""
    return np.broadcast_to(constant.ravel(), (size,))
