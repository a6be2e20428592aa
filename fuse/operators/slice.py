"""Slicing: along the map's axis the slice has its own part of the map, along another one all of it.

Backwards, the whole takes a map that leaves the other channels as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, onto_data
from convbn.fuse.operators.split import into_part, picked, unknown_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "Slice"]


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """Of each axis in ``cuts`` some positions, in any order; None where it is not known which. All of the others."""

    cuts: tuple[tuple[int, range | None], ...]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·x[a:b] + t`` is a slice of what is that from a to b and x elsewhere."""
    cuts = dict(cast(Slice, node.op).cuts)
    if axis not in cuts:
        return onto_data(moves, node, affine, axis)
    positions = cuts[axis]
    return unknown_channels(node) if positions is None else into_part(moves, node, affine, axis, positions)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``(s·x + t)[a:b]`` is ``s[a:b]·x[a:b] + t[a:b]``."""
    cuts = dict(cast(Slice, node.op).cuts)
    if slot != 0:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} reads the map as a position")
    if axis not in cuts:
        return moves.consume(node.outputs[0], affine, axis)
    positions = cuts[axis]
    return unknown_channels(node) if positions is None else picked(moves, node, affine, axis, positions)


def _cut(size: int | None, start: int | None, stop: int | None, step: int | None) -> range | None:
    return None if size is None or not step else range(*slice(start, stop, step).indices(size))


def from_onnx(call: OnnxCall) -> Op | None:
    """Any axes that are known, from anywhere to anywhere."""
    data, axes, starts = call.input(DATA), call.integers(3, "axes"), call.input(1)
    if axes is None:
        given = None if starts is None or starts.shape is None else starts.shape[0]
        count = len(call.attributes["starts"]) if "starts" in call.attributes else given
        axes = None if count is None or call.input(3) is not None else list(range(count))
    if axes is None or data is None or not data.shape or not axes:
        return None
    axes = [axis % len(data.shape) for axis in axes]
    bounds = [
        call.integers(1, "starts"),
        call.integers(2, "ends"),
        call.integers(4, "steps") if call.input(4) is not None else [1] * len(axes),
    ]
    known = [numbers for numbers in bounds if numbers is not None]
    if len(set(axes)) < len(axes) or any(len(numbers) != len(axes) for numbers in known):
        return None
    if len(known) < len(bounds):
        return Slice(tuple((axis, None) for axis in axes))
    sizes = [data.shape[axis] for axis in axes]
    return Slice(tuple(zip(axes, map(_cut, sizes, *known), strict=True)))


def from_aten(call: AtenCall) -> Mapped | None:
    """Along one axis."""
    given, shape = call.given, call.shape()
    axis = call.axis("dim", call.rank(), 0)
    if axis is None:
        return None
    size = None if shape is None else shape[axis]
    start, stop, length, step = (given.get(name) for name in ("start", "end", "length", "step"))
    if not all(bound is None or type(bound) is int for bound in (start, stop, length, step)):
        return call.unary(Slice(((axis, None),)))
    if size is not None and start is not None and length is not None:
        start = start + size if start < 0 else start
        stop = start + length
    return call.unary(Slice(((axis, _cut(size, start, stop, 1 if step is None else step)),)))


def flip_from_aten(call: AtenCall) -> Mapped | None:
    """Axes from the last position to the first."""
    shape, axes = call.shape(), call.given.get("dims")
    if not shape or not isinstance(axes, list | tuple) or not all(type(axis) is int for axis in axes):
        return None
    places = sorted({axis % len(shape) for axis in axes})
    return call.unary(Slice(tuple((axis, _cut(shape[axis], None, None, -1)) for axis in places)))


def roll_from_aten(call: AtenCall) -> Mapped | None:
    """Along other axes than the map's every position has the same map, wherever it goes."""
    rank, axes = call.rank(), call.given.get("dims")
    axes = list(axes) if isinstance(axes, list | tuple) else [axes]
    if rank is None or not axes or not all(type(axis) is int for axis in axes):
        return None  # without axes all of them are one
    return call.unary(Slice(tuple((axis, None) for axis in sorted({axis % rank for axis in axes}))))


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
        Aten(("roll",), roll_from_aten, ("self", "shifts", "dims"), shape=AtenCall.shape, keeps_rank=True),
        Aten(("flip",), flip_from_aten, ("self", "*dims"), shape=AtenCall.shape, keeps_rank=True),
    ),
)
