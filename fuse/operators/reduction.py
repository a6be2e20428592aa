"""The sum, the maximum or the minimum over some axes, and a map along another one.

Over n elements ``s·Σx + t = Σ(s·x + t/n)``: a scale passes, a shift where n is known. A maximum or minimum passes a map
with a positive scale, ``s·max(x) + t = max(s·x + t)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators import mean
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, axis_not_proven, not_positive
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "Reduction"]


@dataclass(frozen=True, slots=True)
class Reduction(Labelled):
    """What ``label`` says, over the axes of a mean."""

    over: mean.Mean


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the data, its shift divided by the number of terms."""
    data = node.input(DATA)
    found = None if data is None else _across(node, data, output, affine, axis, back=True)
    if data is None or found is None:
        return axis_not_proven(node)
    return _unless_turned(node, affine) or moves.produce(data, *found, reader=node)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the output, its shift times the number of terms."""
    data, output = node.input(DATA), node.outputs[0]
    found = None if data is None or slot != DATA else _across(node, data, output, affine, axis, back=False)
    if found is None:
        return axis_not_proven(node)
    return _unless_turned(node, affine) or moves.consume(output, *found)


def _across(
    node: Node, data: Value, output: Value, affine: Affine, axis: int, *, back: bool
) -> tuple[Affine, int] | None:
    op = cast(Reduction, node.op)
    moved = op.over.moved(*((output, data) if back else (data, output)), affine, axis, back=back)
    if moved is None or op.label != "ReduceSum" or affine.is_scale:
        return moved
    sizes = [None if data.shape is None else data.shape[place] for place in op.over.axes]
    known = [size for size in sizes if size]
    if len(known) < len(sizes):
        return None
    terms = math.prod(known)
    return Affine(affine.scale, affine.shift / terms if back else affine.shift * terms), moved[1]


def _unless_turned(node: Node, affine: Affine) -> Refusal | None:
    return None if cast(Reduction, node.op).label == "ReduceSum" else not_positive(node, affine)


def from_onnx(call: OnnxCall) -> Op | None:
    """ReduceSum, ReduceMax and ReduceMin over known axes of data that flows."""
    data, over = call.input(DATA), mean.from_onnx(call)
    if data is None or data.constant is not None or not isinstance(over, mean.Mean):
        return None
    return Reduction(call.operator, over)


OPERATOR = Operator(
    Reduction,
    Rule("reduction", Reduction, backward, forward, through=True),
    onnx=dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceSum"), from_onnx),
)
