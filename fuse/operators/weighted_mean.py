"""Weighted means, as attention makes them: ``Σ_j p[i,j]·(s·v[j] + t) = s·Σ_j p[i,j]·v[j] + t`` with ``Σ_j p[i,j] = 1``.

The weights are a softmax over what is summed, so their sum is 1 whatever they were computed from. The map must
work along the axis that is not summed and not mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule
from convbn.fuse.operators.softmax import Softmax
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import Op

__all__ = ["OPERATOR", "WeightedMean"]


@dataclass(frozen=True, slots=True)
class WeightedMean(Op):
    """A product with weights that sum to 1: attention's ``softmax(·)·V``.

    Slots: both operands of the product; the values stand at ``values``. Each output is a weighted mean of
    values that have the same index along ``axis``, counted from the back (−1, or −2 for values on the left).
    """

    values: int
    axis: int

    def describe(self) -> str:
        """As reports call it."""
        return "MatMul"


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the values."""
    op = cast(WeightedMean, node.op)
    values = node.input(op.values)
    if values is None or values.rank is None or values.rank < 2 or output.rank is None:
        return _mixed(node)
    if axis != output.rank + op.axis:
        return _mixed(node)
    return moves.produce(values, affine, values.rank + op.axis, reader=node)


def multi_axis(
    moves: Moves, node: Node, output: Value, affine: Affine, axes: tuple[int, ...]
) -> Refusal | None:
    """The same map on the values; along axes that count the products, too."""
    op = cast(WeightedMean, node.op)
    values = node.input(op.values)
    if (
        values is None
        or values.shape is None
        or output.shape is None
        or len(values.shape) != len(output.shape)
    ):
        return _mixed(node)
    rank = len(output.shape)
    for axis in axes:
        same = values.shape[axis] is not None and values.shape[axis] == output.shape[axis]
        if axis != rank + op.axis and not (same and axis < rank - 2):
            return _mixed(node)
    return moves.produce(values, affine, axes, reader=node)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the output."""
    op, data, output = cast(WeightedMean, node.op), node.input(slot), node.outputs[0]
    if slot != op.values or data is None or data.rank is None or data.rank < 2 or output.rank is None:
        return _mixed(node)
    if axis != data.rank + op.axis:
        return _mixed(node)
    return moves.consume(output, affine, output.rank + op.axis)


def _mixed(node: Node) -> Refusal:
    return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} mixes what lies along the map's axis")


def from_onnx(call: OnnxCall) -> Op | None:
    """A MatMul with a softmax over what it sums."""
    for weights, values, axis in _SIDES if len(call.inputs) == 2 else ():
        value = call.input(weights)
        softmax = None if value is None or value.producer is None else value.producer.op
        if isinstance(softmax, Softmax) and softmax.axis == axis and call.input(values) is not None:
            return WeightedMean(values, axis)
    return None


_SIDES = ((0, 1, -1), (1, 0, -2))
"""Where the weights stand in a product, where the values, and the values' axis that is not summed."""


def from_aten(call: AtenCall) -> Mapped | None:
    """A product with a softmax over what it sums, whatever hands that on."""
    names = ("self", "other" if call.name == "matmul" else "mat2")
    for weights, values, axis in _SIDES:
        weight, rank = call.tensor(names[weights]), call.rank(names[weights])
        softmax = None if weight is None else call.tensors.call(call.tensors.origin(weight))
        if softmax is None or rank is None or call.tensor(names[values]) is None:
            continue
        along = softmax.given.get("dim")
        if softmax.name not in ("softmax", "_softmax") or type(along) is not int:
            continue
        if (along if along < 0 else along - rank) == axis:
            return call.reads(WeightedMean(values, axis), *names)
    return None


def attention_from_aten(call: AtenCall) -> Mapped | None:
    """``softmax(Q·Kᵀ)·V``; with a mask a row may have no weights at all, and then their sum is not 1."""
    if call.given.get("attn_mask") is not None or call.given.get("dropout_p", 0.0) != 0:
        return None
    return call.reads(WeightedMean(1, -1), "query", "value", "key")


RULE = Rule("mixture", WeightedMean, backward, forward, through=True, multi_axis=multi_axis)

OPERATOR = Operator(
    WeightedMean,
    RULE,
    onnx={"MatMul": from_onnx},
    aten=(
        Aten(("matmul", "bmm"), from_aten),
        Aten(("scaled_dot_product_attention",), attention_from_aten),
    ),
)
