"""Splitting and slicing along the map's axis: each piece has its own part of the map.

Forwards, the readers of a piece take its part. Backwards, the whole takes a map that leaves the channels of the other
pieces as they are.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule, onto_data, wrong_channels
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import Slice, Split

__all__ = ["RULES"]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·x₂ + t`` of one piece is ``split(1·x₁, s·x₂ + t)``."""
    if cast(Split, node.op).axis != axis:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the other pieces of {node.label} would change, too")
    sizes = [_size(piece, axis) for piece in node.outputs]
    known = [size for size in sizes if size is not None]
    # Shapes that the model only claims may be wrong: sizes that do not add up say where no piece lies.
    if len(known) < len(sizes) or sum(known) != _size(node.input(0), axis):
        return _unknown(node)
    piece = [value is output for value in node.outputs].index(True)
    return _part(moves, node, affine, axis, sum(known[:piece]), known[piece])


def backward_slice(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·x[a:b] + t`` is a slice of what is that from a to b and x elsewhere."""
    op = cast(Slice, node.op)
    if op.axis != axis:
        return onto_data(moves, node, affine, axis)
    return _part(moves, node, affine, axis, op.start, op.stop - op.start)


def _part(moves: Moves, node: Node, affine: Affine, axis: int, start: int, size: int) -> Refusal | None:
    """The map on the ``size`` channels from ``start`` on, and nothing on the others."""
    if size != affine.channels:
        return wrong_channels(node, size, affine.channels)
    data = node.input(0)
    channels = _size(data, axis)
    if data is None or channels is None or start + size > channels:
        return _unknown(node)
    scale, shift = np.ones(channels), np.zeros(channels)
    scale[start : start + size] = affine.scale
    shift[start : start + size] = affine.shift
    return moves.produce(data, Affine(scale, shift), axis, reader=node)


def _size(value: Value | None, axis: int) -> int | None:
    """The size along ``axis``, if known."""
    shape = () if value is None or value.shape is None else value.shape
    return shape[axis] if axis < len(shape) else None


def _unknown(node: Node) -> Refusal:
    return Refusal(Reason.AXIS_NOT_PROVEN, f"how many channels {node.label} reads and gives is not known")


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``split(s·x + t)`` is ``s₁·x₁ + t₁, s₂·x₂ + t₂``."""
    along = cast(Split, node.op).axis == axis
    start = 0
    for output in node.outputs:
        piece = affine
        if along:
            size = _size(output, axis)
            if size is None:
                return _unknown(node)
            piece = Affine(affine.scale[start : start + size], affine.shift[start : start + size])
            start += size
        if (refusal := moves.consume(output, piece, axis)) is not None:
            return refusal
    if along and start != affine.channels:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the pieces of {node.label} do not add up")
    return None


def forward_slice(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``(s·x + t)[a:b]`` is ``s[a:b]·x[a:b] + t[a:b]``."""
    op = cast(Slice, node.op)
    if slot != 0:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} reads the map as a position")
    if op.axis != axis:
        return moves.consume(node.outputs[0], affine, axis)
    if op.stop > affine.channels:
        return wrong_channels(node, op.stop, affine.channels, "input")
    piece = Affine(affine.scale[op.start : op.stop], affine.shift[op.start : op.stop])
    return moves.consume(node.outputs[0], piece, axis)


RULES = (
    Rule("split", Split, backward, forward, through=True),
    Rule("slice", Slice, backward_slice, forward_slice, through=True),
)
