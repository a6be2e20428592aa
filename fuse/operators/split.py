"""Splitting: along the map's axis each piece has its own part of the map, along another one all of it.

Forwards, the readers of a piece take its part. Backwards, the whole takes a map that leaves the channels of the other
pieces as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, onto_data, size_along, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "Split", "into_part", "picked", "unknown_channels"]


@dataclass(frozen=True, slots=True)
class Split(Op):
    """The data in pieces along ``axis``, one an output; ``single`` positions have that axis no more."""

    axis: int
    single: bool = False


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·x₂ + t`` of one piece is ``split(1·x₁, s·x₂ + t)``."""
    op = cast(Split, node.op)
    if op.single or op.axis != axis:
        for piece in node.outputs:
            refusal = None if piece is output else moves.unnoticed(piece, affine, axis)
            if refusal is not None:
                detail = f"the other pieces of {node.label} would change, too: {refusal.detail}"
                return Refusal(Reason.AXIS_NOT_PROVEN, detail)
        return onto_data(moves, node, affine, axis + (op.single and axis >= op.axis))
    sizes = [size_along(piece, axis) for piece in node.outputs]
    known = [size for size in sizes if size is not None]
    # Shapes that the model only claims may be wrong: sizes that do not add up say where no piece lies.
    if len(known) < len(sizes) or sum(known) != size_along(node.input(0), axis):
        return unknown_channels(node)
    place = [value is output for value in node.outputs].index(True)
    start = sum(known[:place])
    return into_part(moves, node, affine, axis, range(start, start + known[place]))


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``split(s·x + t)`` is ``s₁·x₁ + t₁, s₂·x₂ + t₂``."""
    op = cast(Split, node.op)
    along = op.axis == axis
    if op.single and along:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the pieces of {node.label} have the map's axis no more")
    axis -= op.single and axis > op.axis
    start = 0
    for output in node.outputs:
        piece = affine
        if along:
            size = size_along(output, axis)
            if size is None:
                return unknown_channels(node)
            piece = Affine(affine.scale[start : start + size], affine.shift[start : start + size])
            start += size
        if (refusal := moves.consume(output, piece, axis)) is not None:
            return refusal
    if along and start != affine.channels:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the pieces of {node.label} do not add up")
    return None


def into_part(
    moves: Moves, node: Node, affine: Affine, axis: int, positions: Sequence[int]
) -> Refusal | None:
    """The map on these channels of the data, and nothing on the others; a channel that comes twice must agree."""
    if len(positions) != affine.channels:
        return wrong_channels(node, len(positions), affine.channels)
    data = node.input(0)
    channels = size_along(data, axis)
    if data is None or channels is None or not all(-channels <= place < channels for place in positions):
        return unknown_channels(node)
    whole, places = Affine(np.ones(channels), np.zeros(channels)), np.asarray(positions, np.intp)
    whole.scale[places], whole.shift[places] = affine.scale, affine.shift
    if (whole.scale[places] != affine.scale).any() or (whole.shift[places] != affine.shift).any():
        return Refusal(
            Reason.AXIS_NOT_PROVEN, f"{node.label} reads a channel twice, and the BatchNorm differs there"
        )
    return moves.produce(data, whole, axis, reader=node)


def picked(moves: Moves, node: Node, affine: Affine, axis: int, positions: Sequence[int]) -> Refusal | None:
    """Each of these channels of the data with its own part of the map."""
    beyond = max((place + 1 if place >= 0 else -place for place in positions), default=0)
    if beyond > affine.channels:
        return wrong_channels(node, beyond, affine.channels, "input")
    places = np.asarray(positions, np.intp)
    return moves.consume(node.outputs[0], Affine(affine.scale[places], affine.shift[places]), axis)


def unknown_channels(node: Node) -> Refusal:
    """The refusal where it is not known which channels a piece is."""
    return Refusal(Reason.AXIS_NOT_PROVEN, f"how many channels {node.label} reads and gives is not known")


def from_onnx(call: OnnxCall) -> Op | None:
    """Split, where every piece has a name."""
    axis = call.axis(call.input(DATA), 0)
    return None if axis is None or any(piece is None for piece in call.outputs) else Split(axis)


def from_aten(call: AtenCall) -> Mapped | None:
    """``split``, ``chunk`` and ``unbind``."""
    axis = call.axis("dim", call.rank(), 0)
    return None if axis is None else call.unary(Split(axis, call.name == "unbind"))


def piece_shape(call: AtenCall) -> Shape | None:
    """Of equal pieces."""
    given, shape, axis = call.given, call.shape(), call.given.get("dim", 0)
    if not shape or not isinstance(axis, int):
        return None
    axis %= len(shape)
    size, pieces, piece = shape[axis], given.get("chunks"), given.get("split_size")
    if isinstance(pieces, int) and size is not None and size % pieces == 0:
        piece = size // pieces
    even = isinstance(piece, int) and size is not None and size % piece == 0
    return (*shape[:axis], piece, *shape[axis + 1 :]) if even else None


def _aten(names: tuple[str, ...], size: str) -> Aten:
    return Aten(names, from_aten, ("self", size, "dim"), shape=piece_shape, several=True, fresh=False)


OPERATOR = Operator(
    Split,
    Rule("split", Split, backward, forward, through=True),
    onnx={"Split": from_onnx},
    aten=(
        _aten(("split", "split_with_sizes"), "split_size"),
        _aten(("chunk",), "chunks"),
        Aten(("unbind",), from_aten),
    ),
)
