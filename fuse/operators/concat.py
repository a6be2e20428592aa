"""Concatenation: along the map's axis each input takes its own part of the map, along another one all of it.

Stacking joins along an axis that the inputs do not have, so each of them takes all of a map along another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, size_along
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import Op

__all__ = ["OPERATOR", "Concat"]


@dataclass(frozen=True, slots=True)
class Concat(Op):
    """The inputs one after another along ``axis``, which only the output has where they are ``stacked``."""

    axis: int
    stacked: bool = False


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``concat(x₁, x₂)`` under ``(s, t)`` is ``concat(s₁x₁ + t₁, s₂x₂ + t₂)``."""
    inputs = [value for value in node.inputs if value is not None]
    if len({id(value) for value in inputs}) != len(inputs):
        return Refusal(Reason.SEVERAL_READERS, f"{node.label} reads one value twice")
    op = cast(Concat, node.op)
    along = op.axis == axis
    if op.stacked and along:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} makes the map's axis of its inputs")
    axis -= op.stacked and op.axis < axis
    sizes = _sizes(node, axis)
    if sizes is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the sizes of what {node.label} joins are not known")
    parts, start = [affine] * len(sizes), 0
    if along:
        for place, size in enumerate(sizes):
            parts[place] = Affine(affine.scale[start : start + size], affine.shift[start : start + size])
            start += size
    return moves.produce_all(list(zip(inputs, parts, strict=True)), axis, reader=node)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The readers apply the map to their part, and nothing to the others."""
    sizes, op = _sizes(node, axis), cast(Concat, node.op)
    if sizes is None or op.axis != axis or op.stacked or sizes[slot] != affine.channels:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} joins along another axis or unknown sizes")
    before, after = sum(sizes[:slot]), sum(sizes[slot + 1 :])
    scale = np.concatenate([np.ones(before), affine.scale, np.ones(after)])
    shift = np.concatenate([np.zeros(before), affine.shift, np.zeros(after)])
    return moves.consume(node.outputs[0], Affine(scale, shift), axis)


def _sizes(node: Node, axis: int) -> list[int] | None:
    sizes = [size_along(value, axis) for value in node.inputs]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def from_onnx(call: OnnxCall) -> Op | None:
    """Concat, whose axis had a default until opset 4."""
    axis = call.axis(call.outputs[0], 1 if call.opset < 4 else None)
    return None if axis is None else Concat(axis)


def from_aten(call: AtenCall) -> Mapped | None:
    """``cat`` and ``stack`` over tensors of one rank."""
    tensors = call.given.get("tensors")
    if not isinstance(tensors, list | tuple) or not all(map(call.tensors.is_tensor, tensors)):
        return None
    shapes = map(call.tensors.shape, tensors)
    ranks = {None if shape is None else len(shape) for shape in shapes}
    # Of another rank is only the empty tensor, which older code starts a list with.
    rank, stacked = next(iter(ranks), None), call.name == "stack"
    rank = None if rank is None else rank + stacked
    axis = call.axis("dim", rank, 0) if len(ranks) == 1 else None
    if call.name in _AXES:  # of a vector they make something else
        axis = None if rank is None or rank < 2 else _AXES[call.name]
    return None if axis is None else Mapped(Concat(axis, stacked), tuple(tensors))


_AXES = {"vstack": 0, "hstack": 1}


def shape_of_cat(call: AtenCall) -> Shape | None:
    """The sizes along the axis added; along the others any that is known."""
    tensors, axis = call.given.get("tensors"), call.given.get("dim", 0)
    if not isinstance(tensors, list | tuple) or not isinstance(axis, int):
        return None
    shapes = [call.tensors.shape(tensor) for tensor in tensors]
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes) or len({len(shape) for shape in known}) != 1:
        return None
    axis %= len(known[0])
    sizes = [shape[axis] for shape in known]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    merged = [next((s[i] for s in known if s[i] is not None), None) for i in range(len(known[0]))]
    merged[axis] = total
    return tuple(merged)


def shape_of_stack(call: AtenCall) -> Shape | None:
    """One more axis, with the number of tensors; along the others any size that is known."""
    shape, axis, tensors = shape_of_cat(call), call.given.get("dim", 0), call.given.get("tensors")
    if shape is None or not isinstance(axis, int) or not isinstance(tensors, list | tuple):
        return None
    axis %= len(shape) + 1
    sizes = [call.tensors.shape(tensor) or shape for tensor in tensors]
    merged = [next((s[i] for s in sizes if s[i] is not None), None) for i in range(len(shape))]
    return (*merged[:axis], len(tensors), *merged[axis:])


RULE = Rule("concat", Concat, backward, forward, through=True)

OPERATOR = Operator(
    Concat,
    RULE,
    onnx={"Concat": from_onnx},
    aten=(
        Aten(
            ("cat", "concat", "concatenate"),
            from_aten,
            ("tensors", "dim"),
            functions=("concat",),
            shape=shape_of_cat,
            keeps_rank=True,
        ),
        Aten(("stack",), from_aten, ("tensors", "dim"), shape=shape_of_stack),
        *(Aten((name,), from_aten, ("tensors",), keeps_rank=True) for name in _AXES),
    ),
)
