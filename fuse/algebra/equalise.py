"""The scale of each channel that makes a layer lose least by quantisation to integers.

A channel x[c] of a value and the column W[o, c] of the layer that reads it can share a scale,
``(W[o, c]/s[c])·(s[c]·x[c])``. The value is quantised with one step for all channels, ``max_c s[c]·a[c] / 127`` with a
the largest |x|, and the weights with one for each row, ``max_c |W[o, c]|/s[c] / 127``. A rounding error has the
variance step²/12, so in units of that and of 1/127² the output of the layer has the noise

``N(s) = (max_c s[c]·a[c])² · Σ_o,c W[o, c]²/s[c]² + K · Σ_o (max_c |W[o, c]|/s[c])² · Σ_c s[c]²·E[x[c]²]``

with K taps of a kernel. Its two terms pull apart: ``s = 1/a`` makes the value's channels equal, ``s = w`` (w the
largest |W[:, c]|) the weight's columns, and ``s = √(w/a)`` both alike, which is cross-layer equalisation (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, equation 11, with a measured range in
the place of the row of the weight in front). ``s = w^(1−α) / a^α`` holds all three; the α of least N is taken, and none
at all where that gains little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Consumer", "best_scale", "noise"]

Vector = NDArray[np.float64]

_ALPHAS = (0.25, 0.5, 0.75, 1.0)

_FLOOR = 2.0**-8
"""Of the largest range: a channel that is smaller, or empty, is scaled as if it had this one."""

_LEAST_GAIN = 0.05


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer that reads channels whose scales are free.

    Attributes:
        weight: |W| as ``[groups, O/groups, I/groups, K]``, K the taps of its kernel.
        largest: max |x| of each input channel, ``[I]``.
        power: E[x²] of each, ``[I]``.
        channel: which free scale each input channel has, −1 for none, ``[I]``.
    """

    weight: Vector
    largest: Vector
    power: Vector
    channel: NDArray[np.intp]

    def scale(self, free: Vector) -> Vector:
        """The scale of each input channel."""
        return np.where(self.channel >= 0, free[self.channel], 1.0)


def noise(consumer: Consumer, free: Vector) -> float:
    """N(s) over the power of what the layer gives, ``Σ W[o, c]²·E[x[c]²]``."""
    weight = consumer.weight
    groups, _, inputs, taps = weight.shape
    scale = consumer.scale(free)
    columns = scale.reshape(groups, 1, inputs)
    squared = (weight**2).sum(axis=-1)
    power = consumer.power.reshape(groups, 1, inputs)
    step = float((scale * consumer.largest).max(initial=0.0))
    rows = (weight.max(axis=-1) / columns).max(axis=-1)
    of_data = step**2 * float((squared / columns**2).sum())
    of_weights = taps * float((rows**2 * (columns**2 * power).sum(axis=-1)).sum())
    signal = float((squared * power).sum())
    return (of_data + of_weights) / signal if signal > 0 else 0.0


def best_scale(consumers: Sequence[Consumer], channels: int) -> tuple[Vector, float, float] | None:
    """The scale of each of the free channels.

    The largest value of each layer's input stays as large as it was, or becomes smaller: only quieter channels grow.

    Args:
        consumers: every layer that reads them.
        channels: how many there are.

    Returns:
        The scale, all positive, and the noise before and with it; None where that gains little.
    """
    largest, columns = np.zeros(channels), np.zeros(channels)
    for consumer in consumers:
        own = consumer.channel >= 0
        index = consumer.channel[own]
        np.maximum.at(largest, index, consumer.largest[own])
        np.maximum.at(columns, index, consumer.weight.max(axis=(1, 3)).reshape(-1)[own])
    if not (largest.any() and columns.any()):
        return None
    largest = np.maximum(largest, _FLOOR * largest.max())
    columns = np.maximum(columns, _FLOOR * columns.max())
    before = sum(noise(consumer, np.ones(channels)) for consumer in consumers)
    found: list[tuple[float, Vector]] = []
    for alpha in _ALPHAS:
        scale = columns ** (1 - alpha) / largest**alpha
        scale *= largest.max() / (scale * largest).max()
        found.append((sum(noise(consumer, scale) for consumer in consumers), scale))
    after, scale = min(found, key=lambda pair: pair[0])
    return (scale, before, after) if after < (1 - _LEAST_GAIN) * before else None
