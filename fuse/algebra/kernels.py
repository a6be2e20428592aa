"""Linear branches over the same data, summed: one kernel that is their sum.

A convolution is ``y[o, p] = Σ_c Σ_i W[o, c, i] · x[c, p·stride + i·dilation − begin] + b[o]`` with zeros outside x. It
is linear in ``(W, b)``, so two of them over the same x whose taps lie on a common lattice are one, with the sum of
both weights, each written at its own taps ``i·dilation − begin``. An axis over which a kernel has one tap has no
dilation of its own.

Both must give outputs of one size whatever the size of x: with ``slack = begin + end − dilation·(k − 1)`` an axis of n
becomes ``⌊(n + slack − 1)/stride⌋ + 1``, so the strides and the slack must agree. The merged kernel reaches from the
first tap of either to the last, hence ``begin' = max(begin)`` and ``end' = max(end)``, and has the same slack.

The identity is the kernel of size 1 with one group a channel and weights 1, stride 1 and no padding; a per-channel map
``s·x + t`` is that with weights s and bias t, and an average over windows that counts its zeros one with weights
``1/∏k``. A kernel of ga groups is one of g groups for every g that divides ga, with zeros between the groups that
become one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.view.op import Window

__all__ = ["Form", "add_into", "pointwise", "union"]

Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Form:
    """All of a convolution but its numbers.

    Attributes:
        shape: of the weight, ``[O, C/groups, *K]``.
        groups: divides O and C.
        window: where the kernel is laid.
    """

    shape: tuple[int, ...]
    groups: int
    window: Window

    @property
    def channels(self) -> tuple[int, int]:
        """O and C."""
        return self.shape[0], self.shape[1] * self.groups


def pointwise(channels: int, spatial: int) -> Form:
    """The form of the identity, and of a per-channel map, over data of ``spatial`` spatial axes."""
    ones, zeros = (1,) * spatial, (0,) * spatial
    return Form((channels, 1, *ones), channels, Window(ones, ones, zeros, zeros))


def union(a: Form, b: Form) -> Form | None:
    """The smallest form that can hold the sum of both, or None where no convolution is that sum."""
    if (
        len(a.shape) != len(b.shape)
        or len(a.shape) < 3
        or a.channels != b.channels
        or a.window.strides != b.window.strides
    ):
        return None
    found = [_axis(a, b, axis) for axis in range(len(a.shape) - 2)]
    axes = [axis for axis in found if axis is not None]
    if len(axes) < len(found):
        return None
    kernel, dilations, begin, end = (tuple(numbers) for numbers in zip(*axes, strict=True))
    groups = math.gcd(a.groups, b.groups)
    outputs, inputs = a.channels
    window = Window(a.window.strides, dilations, begin, end)
    return Form((outputs, inputs // groups, *kernel), groups, window)


def _axis(a: Form, b: Form, axis: int) -> tuple[int, int, int, int] | None:
    """Kernel size, dilation and padding that hold both along one spatial axis."""
    sizes = a.shape[2 + axis], b.shape[2 + axis]
    begins = a.window.begin[axis], b.window.begin[axis]
    ends = a.window.end[axis], b.window.end[axis]
    steps = a.window.dilations[axis], b.window.dilations[axis]
    slack, other = (
        begin + end - step * (size - 1)
        for begin, end, step, size in zip(begins, ends, steps, sizes, strict=True)
    )
    lattices = {step for step, size in zip(steps, sizes, strict=True) if size > 1} or {1}
    begin, end = max(begins), max(ends)
    if slack != other or len(lattices) > 1:
        return None
    step = lattices.pop()
    if any((begin - own) % step for own in begins):
        return None
    return (begin + end - slack) // step + 1, step, begin, end


def add_into(total: Weights, into: Form, weight: Weights, form: Form, factor: float = 1.0) -> None:
    """Add ``factor · weight`` to ``total`` where its taps and groups lie in the larger form.

    Args:
        total: of the shape of ``into``; changed.
        into: a :func:`union` of ``form`` with another.
        weight: broadcastable to the shape of ``form``.
        form: of the weight.
        factor: usually 1 or −1.
    """
    outputs, inputs, *kernel = form.shape
    joined = form.groups // into.groups
    per_group = outputs // form.groups
    seen = total.reshape(into.groups, joined, per_group, joined, inputs, *into.shape[2:])
    taps = []
    for axis, size in enumerate(kernel):
        first = (into.window.begin[axis] - form.window.begin[axis]) // into.window.dilations[axis]
        taps.append(slice(first, first + size))
    values = np.broadcast_to(weight, form.shape).reshape(into.groups, joined, per_group, inputs, *kernel)
    every = slice(None)
    for group in range(joined):
        index: tuple[Any, ...] = (every, group, every, group, every, *taps)
        seen[index] += values[:, group] if factor == 1 else factor * values[:, group]
