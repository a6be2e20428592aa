"""Reshaping: a map along one axis stays one as long as that axis is not axis_not_proven apart.

With P elements in front of the axis, C along it and S behind it, the output has an axis in the same place (P in front)
if its size D and what lies behind it, R, fill the same block: ``C·S = D·R``. Then every channel covers ``S/R`` entries
of the new axis, forwards; backwards ``D/C`` entries that must agree. P may be unknown (the batch): it is the same for
both, since the elements are.

Backwards, where an axis was made of several, the map lies along all of these at once, until they are one again. So a
BatchNorm passes attention, which splits channels into heads and what a head has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rearrangement, Rule, axis_not_proven, follow_forward
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "Reshape"]


@dataclass(frozen=True, slots=True)
class Reshape(Labelled, Rearrangement):
    """The same elements in the same order under another shape (Reshape, Flatten, Squeeze, Unsqueeze)."""

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The same map along an axis in the same place, where there is one."""
        if source.shape is None or target.shape is None or axis >= len(source.shape):
            return None
        return _through_reshape(source.shape, target.shape, affine, axis)


Sizes = Sequence[int | None]


def _behind(shape: Sizes, axis: int) -> int | None:
    """Elements behind an axis, for one index along it."""
    sizes = shape[axis + 1 :]
    return (
        None if any(size is None for size in sizes) else math.prod(size for size in sizes if size is not None)
    )


def _through_reshape(source: Sizes, target: Sizes, affine: Affine, axis: int) -> tuple[Affine, int] | None:
    """The same map along an axis of the other shape; None where the axis is torn apart or unknown."""
    behind = _behind(source, axis)
    if not behind or not affine.channels or source[axis] != affine.channels:
        return None
    block = affine.channels * behind
    for place in range(len(target)):
        rest, size = _behind(target, place), target[place]
        if rest is None or size is None or size * rest != block:
            continue
        if behind % rest == 0:
            times = behind // rest
            return Affine(np.repeat(affine.scale, times), np.repeat(affine.shift, times)), place
        if rest % behind == 0:
            # Several channels of the source share an index of the target: they must agree.
            scale, shift = affine.scale.reshape(size, -1), affine.shift.reshape(size, -1)
            if (scale == scale[:, :1]).all() and (shift == shift[:, :1]).all():
                return Affine(scale[:, 0].copy(), shift[:, 0].copy()), place
    return None


def _apart(source: Sizes, target: Sizes, axis: int) -> tuple[int, ...] | None:
    """The neighbouring axes of ``target`` that an axis of ``source`` was made of."""
    behind, size = _behind(source, axis), source[axis]
    if behind is None or size is None:
        return None
    for last in range(len(target)):
        if _behind(target, last) != behind:
            continue
        product = 1
        for first in range(last, -1, -1):
            part = target[first]
            if part is None:
                return None
            product *= part
            if product == size:
                return tuple(range(first, last + 1))
    return None


def _joined(shape: Sizes, axes: tuple[int, ...], channels: int) -> Sizes | None:
    """The shape with these axes as one, if they are neighbours and hold all channels."""
    if axes != tuple(range(axes[0], axes[-1] + 1)):
        return None
    sizes = [size for size in shape[axes[0] : axes[-1] + 1] if size is not None]
    if len(sizes) < len(axes) or math.prod(sizes) != channels:
        return None
    return [*shape[: axes[0]], channels, *shape[axes[-1] + 1 :]]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the input, along one axis or along those that this one was made of."""
    data = node.input(DATA)
    if data is None or data.shape is None or output.shape is None or axis >= len(output.shape):
        return axis_not_proven(node)
    moved = _through_reshape(output.shape, data.shape, affine, axis)
    if moved is not None:
        return moves.produce(data, *moved, reader=node)
    axes = _apart(output.shape, data.shape, axis) if output.shape[axis] == affine.channels else None
    return axis_not_proven(node) if axes is None else moves.produce(data, affine, axes, reader=node)


def multi_axis(
    moves: Moves, node: Node, output: Value, affine: Affine, axes: tuple[int, ...]
) -> Refusal | None:
    """The same map on the input, along the axis that these were made of."""
    data = node.input(DATA)
    if data is None or data.shape is None or output.shape is None:
        return axis_not_proven(node)
    whole = _joined(output.shape, axes, affine.channels)
    moved = None if whole is None else _through_reshape(whole, data.shape, affine, axes[0])
    return axis_not_proven(node) if moved is None else moves.produce(data, *moved, reader=node)


def from_onnx(call: OnnxCall) -> Op:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    return Reshape(call.operator)


def from_aten(call: AtenCall) -> Mapped | None:
    """``view`` and everything that is one."""
    plain = call.name in ("flatten", "unflatten", "squeeze", "unsqueeze")
    return call.unary(Reshape(call.name.capitalize() if plain else "Reshape"))


def flattened_shape(call: AtenCall) -> Shape | None:
    """The product of the sizes, where all are known."""
    shape, first, last = call.shape(), call.given.get("start_dim", 0), call.given.get("end_dim", -1)
    if not shape or not isinstance(first, int) or not isinstance(last, int):
        return None
    first, last = first % len(shape), last % len(shape)
    sizes = [size for size in shape[first : last + 1] if size is not None]
    total = math.prod(sizes) if len(sizes) == last + 1 - first else None
    return (*shape[:first], total, *shape[last + 1 :])


def unsqueezed_shape(call: AtenCall) -> Shape | None:
    """One more axis, of size 1."""
    shape, place = call.shape(), call.given.get("dim", 0)
    if not shape or not isinstance(place, int):
        return None
    place = place if place >= 0 else place + len(shape) + 1
    return (*shape[:place], 1, *shape[place:])


OPERATOR = Operator(
    Reshape,
    Rule("reshape", Reshape, backward, follow_forward, True, multi_axis),
    onnx=dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), from_onnx),
    aten=(
        Aten(
            ("reshape", "view", "_unsafe_view", "_reshape_alias", "view_as", "reshape_as", "unflatten"),
            from_aten,
            ("self", "*shape"),
            ("view",),
            fresh=False,
        ),
        Aten(
            ("flatten",),
            from_aten,
            ("self", "start_dim", "end_dim"),
            shape=flattened_shape,
            fresh=False,
        ),
        Aten(("squeeze",), from_aten, ("self", "dim"), fresh=False),
        Aten(("unsqueeze",), from_aten, ("self", "dim"), shape=unsqueezed_shape, fresh=False),
    ),
)
