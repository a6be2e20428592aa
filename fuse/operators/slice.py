"""Slicing: along the map's axis the slice has its own part of the map, along another one all of it.

Backwards, the whole takes a map that leaves the other channels as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, onto_data, wrong_channels
from convbn.fuse.operators.split import into_part
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "Slice"]


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """The indices ``start`` to ``stop`` (without it) of ``axis``, one after another; all of the other axes."""

    axis: int
    start: int
    stop: int


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·x[a:b] + t`` is a slice of what is that from a to b and x elsewhere."""
    op = cast(Slice, node.op)
    if op.axis != axis:
        return onto_data(moves, node, affine, axis)
    return into_part(moves, node, affine, axis, op.start, op.stop - op.start)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
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


def from_onnx(call: OnnxCall) -> Op | None:
    """One axis of known size, in steps of 1."""
    starts, stops = call.integers(1, "starts"), call.integers(2, "ends")
    axes, data = call.integers(3, "axes"), call.input(DATA)
    if call.input(4) is not None and call.integers(4, "steps") != [1]:
        return None
    if starts is None or stops is None or data is None or not data.shape:
        return None
    if len(starts) != 1 or len(stops) != 1 or (axes is None and call.input(3) is not None):
        return None
    axis = (axes or [0])[0] % len(data.shape)
    size = data.shape[axis]
    return None if size is None else Slice(axis, *slice(starts[0], stops[0]).indices(size)[:2])


def from_aten(call: AtenCall) -> Mapped | None:
    """Along one axis of known size, in steps of 1."""
    given, shape = call.given, call.shape()
    axis = call.axis("dim", call.rank(), 0)
    size = None if shape is None or axis is None else shape[axis]
    # What cannot be told from a batch or a side of an image is that it is no channel axis.
    if axis is None or size is None or given.get("step", 1) != 1:
        return None
    start, stop, length = given.get("start"), given.get("end"), given.get("length")
    if not all(bound is None or type(bound) is int for bound in (start, stop, length)):
        return None
    if start is not None and length is not None:
        start = start + size if start < 0 else start
        stop = start + length
    return call.unary(Slice(axis, *slice(start, stop).indices(size)[:2]))


def narrowed_shape(call: AtenCall) -> Shape | None:
    """As many along the axis as the call says."""
    shape, axis, length = call.shape(), call.given.get("dim", 0), call.given.get("length")
    if not shape or not isinstance(axis, int):
        return None
    axis %= len(shape)
    return (*shape[:axis], length if isinstance(length, int) else None, *shape[axis + 1 :])


OPERATOR = Operator(
    Slice,
    Rule("slice", Slice, backward, forward, through=True),
    onnx={"Slice": from_onnx},
    aten=(
        Aten(
            ("narrow", "slice"),
            from_aten,
            ("self", "dim", "start", "length"),
            shape=narrowed_shape,
            fresh=False,
        ),
    ),
)
