"""Deformable, sparse and custom convolutions: registered with where their outputs lie, or ONNX's DeformConv.

``y[o] = Σ W[o]·(whatever the data gives) + b[o]`` for every output o, so ``s[o]·y[o] + t[o]`` has the weight
``s[o]·W[o]`` and the bias ``s[o]·b[o] + t[o]``. What the data gives need not be linear in it, so no map passes forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.operators.calls import OnnxCall, axis_of
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Pending, Rule, parameters, wrong_axis, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, WEIGHT, Labelled, Op

__all__ = ["OPERATOR", "RegisteredConv"]


@dataclass(frozen=True, slots=True)
class RegisteredConv(Labelled):
    """Slots: data, weight, bias ``[O]`` at the slot ``bias``, and what else it reads.

    ``output_axis`` is the weight's axis of outputs, ``channel_axis`` the result's; from the back where negative.
    """

    output_axis: int = 0
    channel_axis: int = 1
    bias: int = BIAS

    def output_axis_of(self, rank: int | None) -> int | None:
        """As it was registered."""
        return axis_of(self.channel_axis, rank)


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``W'[o] = s[o]·W[o]``, ``b' = s·b + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    op = cast(RegisteredConv, node.op)
    constants = parameters(moves, node, bias=op.bias)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    outputs = axis_of(op.output_axis, len(weight.shape)) or 0
    sizes = weight.shape[outputs : outputs + 1]
    if sizes != (affine.channels,):
        return wrong_channels(node, (*sizes, 0)[0], affine.channels)
    if bias is not None and bias.shape != sizes:
        return Refusal(Reason.PARAMETERS_MALFORMED, f"the bias of {node.label} has shape {list(bias.shape)}")
    if not affine.is_shift:
        shape = [1] * len(weight.shape)
        shape[outputs] = affine.channels
        scale = affine.scale.reshape(shape)
        scaled = Pending(weight.shape, lambda: round_scaled(weight, scale, axes=(outputs,)))
        if (refusal := moves.set(node, WEIGHT, scaled)) is not None:
            return refusal
    if bias is None and affine.is_scale:
        return None

    def shifted() -> Constant | Refusal:
        total = affine.shift if bias is None else affine.scale * bias.exact() + affine.shift
        return round_vector(total, weight.dtype)

    return moves.set(node, op.bias, Pending(sizes, shifted))


def from_onnx(call: OnnxCall) -> Op:
    """DeformConv: data, weight, offsets, bias, mask."""
    return RegisteredConv(call.operator, bias=3)


OPERATOR = Operator(
    RegisteredConv, Rule("registered-conv", RegisteredConv, backward), onnx={"DeformConv": from_onnx}
)
