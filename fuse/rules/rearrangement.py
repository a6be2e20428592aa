"""What moves elements without changing them: transposing, reshaping, and passing through.

A map along one axis stays a map along one axis as long as that axis is not torn apart:

* Transpose: axis ``order[i]`` of the input is axis i of the output.
* Reshape: with P elements in front of the axis, C along it and S behind it, the output has an axis in
  the same place (P in front) if its size D and what lies behind it, R, fill the same block: ``C·S = D·R``. Then
  every channel covers ``S/R`` entries of the new axis, forwards; backwards ``D/C`` entries that must agree.
  P may be unknown (the batch): it is the same for both, since the elements are.
* Reshape backwards, where an axis was made of several: the map lies along all of these at once, until they are one
  again. So a BatchNorm passes attention, which splits channels into heads and what a head has.
* Mean over other axes, Identity, interpolation: the axis stays, or moves up by the axes that went.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import Mean, Passage, Reshape, Transpose

__all__ = ["RULES"]

Shape = Sequence[int | None]


def _behind(shape: Shape, axis: int) -> int | None:
    """Elements behind an axis, for one index along it."""
    sizes = shape[axis + 1 :]
    return (
        None if any(size is None for size in sizes) else math.prod(size for size in sizes if size is not None)
    )


def _through_reshape(source: Shape, target: Shape, affine: Affine, axis: int) -> tuple[Affine, int] | None:
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


def _apart(source: Shape, target: Shape, axis: int) -> tuple[int, ...] | None:
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


def _joined(shape: Shape, axes: tuple[int, ...], channels: int) -> Shape | None:
    """The shape with these axes as one, if they are neighbours and hold all channels."""
    if axes != tuple(range(axes[0], axes[-1] + 1)):
        return None
    sizes = [size for size in shape[axes[0] : axes[-1] + 1] if size is not None]
    if len(sizes) < len(axes) or math.prod(sizes) != channels:
        return None
    return [*shape[: axes[0]], channels, *shape[axes[-1] + 1 :]]


def _moved(node: Node, source: Value, target: Value, affine: Affine, axis: int) -> tuple[Affine, int] | None:
    """The map as the other side of the node sees it; ``source`` is the side it comes from."""
    op = node.op
    backwards = source is node.outputs[0]
    if isinstance(op, Transpose):
        if axis >= len(op.order):
            return None
        return affine, op.order[axis] if backwards else op.order.index(axis)
    if isinstance(op, Passage):
        same = source.shape is not None and target.shape is not None
        known = same and source.shape is not None and len(source.shape) > axis
        return (affine, axis) if known and _size(source, axis) == _size(target, axis) else None
    if isinstance(op, Mean):
        kept = [i for i in range(op.rank) if i not in op.axes]
        places = list(range(op.rank)) if op.keepdims else kept
        if backwards:
            inner = places[axis] if axis < len(places) else None
            return None if inner is None or inner in op.axes else (affine, inner)
        return (affine, places.index(axis)) if axis in places and axis not in op.axes else None
    if source.shape is None or target.shape is None or axis >= len(source.shape):
        return None
    return _through_reshape(source.shape, target.shape, affine, axis)


def _size(value: Value, axis: int) -> int | None:
    return None if value.shape is None or axis >= len(value.shape) else value.shape[axis]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the input."""
    data = node.input(0)
    moved = None if data is None else _moved(node, output, data, affine, axis)
    if data is not None and moved is not None:
        return moves.produce(data, moved[0], moved[1], reader=node)
    shape, size = output.shape, _size(output, axis)
    if isinstance(node.op, Reshape) and data is not None and data.shape is not None and shape is not None:
        axes = _apart(shape, data.shape, axis) if size == affine.channels else None
        if axes is not None:
            return moves.produce(data, affine, axes, reader=node)
    return _torn(node)


def scattered(
    moves: Moves, node: Node, output: Value, affine: Affine, axes: tuple[int, ...]
) -> Refusal | None:
    """The same map on the input, along the axes that these come from."""
    data = node.input(0)
    if data is None or data.shape is None or output.shape is None:
        return _torn(node)
    if isinstance(node.op, Transpose):
        order = node.op.order
        if max(axes) >= len(order):
            return _torn(node)
        return moves.produce(data, affine, tuple(order[axis] for axis in axes), reader=node)
    whole = _joined(output.shape, axes, affine.channels)
    moved = None if whole is None else _through_reshape(whole, data.shape, affine, axes[0])
    return _torn(node) if moved is None else moves.produce(data, moved[0], moved[1], reader=node)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the output."""
    data = node.input(0)
    moved = None if data is None or slot != 0 else _moved(node, data, node.outputs[0], affine, axis)
    if moved is None:
        return _torn(node)
    return moves.consume(node.outputs[0], moved[0], moved[1])


def _torn(node: Node) -> Refusal:
    return Refusal(
        Reason.AXIS_NOT_PROVEN,
        f"where {node.label} puts the BatchNorm's axis does not follow from the shapes",
    )


RULES = tuple(
    Rule(name, operator, backward, forward, True, scattered if operator in (Transpose, Reshape) else None)
    for name, operator in (
        ("transpose", Transpose),
        ("reshape", Reshape),
        ("mean", Mean),
        ("passage", Passage),
    )
)
