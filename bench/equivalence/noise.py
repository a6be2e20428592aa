"""The reference's own noise: what its outputs move by where its inputs move by one unit in the last place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convbn.bench.equivalence.tolerance import Tolerance
from convbn.bench.models.arguments import alike
from convbn.bench.models.inputs import Array, Feeds
from convbn.common.dtypes import is_float

__all__ = [
    "BLIND",
    "BLIND_CONVERTED",
    "BOUND_16_BIT",
    "NOISE_MULTIPLE",
    "by_channel",
    "moved_by_rounding",
    "multiple_of",
    "noise_by_channel",
]

#: Bounds (√ε) from here on belong to 16-bit types.
BOUND_16_BIT = 0.03
#: An error of so many times the reference's own noise is let through: the noise is of one or two samples, and a fold
#: rounds in as many places as the reference does. In the 16-bit types one unit in the last place is coarse.
NOISE_MULTIPLE, NOISE_MULTIPLE_16_BIT = 16.0, 4.0
#: Values of a channel below which its noise may be small by chance.
_FEW = 64
#: Of another precision, whose every value is rounded and not the input alone.
NOISE_MULTIPLE_CONVERTED = 8.0
#: What a comparison that needs the noise may let through and still say something; of another precision as int8.
BLIND, BLIND_CONVERTED = 0.1, 0.25


def multiple_of(bound: float, tolerance: Tolerance | None) -> float:
    """How many times the noise an error may be."""
    if tolerance is not None:
        return NOISE_MULTIPLE_CONVERTED
    return NOISE_MULTIPLE_16_BIT if bound > BOUND_16_BIT else NOISE_MULTIPLE


def noise_by_channel(shifts: Sequence[Array], count: int) -> Array:
    """The noise of each channel; where it has few values, no less than that of half of them."""
    if not shifts:
        return np.zeros(count)
    noise: Array = np.max([by_channel(shift).max(axis=1, initial=0.0) for shift in shifts], axis=0)
    return np.maximum(noise, np.median(noise)) if shifts[0].size < _FEW * count else noise


def by_channel(array: Array) -> Array:
    """A row for each place of axis 1."""
    return np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)


def moved_by_rounding(feeds: Feeds, unit: float | None = None) -> Feeds | None:
    """Every float moved up or down by about one unit in its last place; None where there is none.

    Args:
        feeds: arrays by name.
        unit: the unit, relative to the number; that of its own type without.
    """
    import ml_dtypes

    random = np.random.default_rng(0)
    moved: dict[str, Array] = {}
    floats = 0
    for name, array in feeds.items():
        moved[name] = array
        if array.dtype.kind == "c" or is_float(array.dtype):
            real = array.real.dtype if array.dtype.kind == "c" else array.dtype
            step = float(ml_dtypes.finfo(real).eps) if unit is None else unit
            signs = random.integers(0, 2, array.shape) * 2.0 - 1
            wide = array if array.dtype.kind == "c" else array.astype(np.float64)
            moved[name] = (wide * (1 + step * signs)).astype(array.dtype)
            floats += array.size
    return alike(feeds, moved) if floats else None
