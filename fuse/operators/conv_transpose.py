"""Transposed convolution and an affine map, on either side.

As for a convolution, but the output channels are the weight's *second* axis, ``[C, O/groups, *K]``, and
groups run along its first: with ``W`` seen as ``[groups, C/groups, O/groups, *K]``,

``W'[g, c, o] = s[g·(O/groups) + o] · W[g, c, o]``, ``b' = s·b + t``.

Exact for every spatial rank, stride, padding, output padding, dilation and number of groups. Tools that
scale axis 0, or broadcast ``s`` over the second axis, are wrong as soon as groups > 1.

In front of it only a scale is exact: which kernel positions reach an output differs from place to place, and with it
what a shift would add. With a kernel of one element, stride 1 and no padding it is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape, window
from convbn.fuse.operators.conv import conv_parameters
from convbn.fuse.operators.dequantize import into_quantized, is_dequantized
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Pending, Rule, size_along, wrong_axis, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, DATA, WEIGHT, Op, Window

__all__ = ["OPERATOR", "ConvTranspose"]


@dataclass(frozen=True, slots=True)
class ConvTranspose(Op):
    """Transposed convolution; slots as :class:`Conv`, weight ``[C, O/groups, *K]``, group-major.

    Output channel ``o`` of group ``g`` is ``g·(O/groups) + o``: input channels carry the group, not
    the weight's second axis. With ``single`` every output comes from one input through a kernel of one element.
    """

    groups: int
    channel_axis: int | None = 1
    single: bool = False

    def output_axis_of(self, rank: int | None) -> int | None:
        """Whatever the rank."""
        return self.channel_axis


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``W'[g, :, o] = s[g, o]·W[g, :, o]``, ``b' = s·b + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    if is_dequantized(node):
        return _into_quantized(moves, node, affine)
    constants = conv_parameters(moves, node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    groups = cast(ConvTranspose, node.op).groups
    inputs, outputs, *kernel = weight.shape
    if groups * outputs != affine.channels:
        return wrong_channels(node, groups * outputs, affine.channels)
    if not affine.is_shift:
        scale = affine.scale.reshape(groups, 1, outputs, *[1] * len(kernel))
        grouped = (groups, inputs // groups, outputs, *kernel)
        scaled = Pending(weight.shape, lambda: round_scaled(weight, scale, axes=(0, 2), seen_as=grouped))
        if (refusal := moves.set(node, WEIGHT, scaled)) is not None:
            return refusal

    def shifted() -> Constant | Refusal:
        total = affine.shift if bias is None else affine.scale * bias.exact() + affine.shift
        return round_vector(total, weight.dtype)

    return moves.set(node, BIAS, Pending((affine.channels,), shifted))


def _into_quantized(moves: Moves, node: Node, affine: Affine) -> Refusal | None:
    """Along the first axis of the weight where a group has one output; along the second all groups share the scales."""
    weight, groups = node.input(WEIGHT), cast(ConvTranspose, node.op).groups
    inputs = size_along(weight, 0)
    if groups == 1:
        return into_quantized(moves, node, affine, output_axis=1)
    if affine.channels == groups and inputs is not None and not inputs % groups:
        spread = np.repeat(affine.scale, inputs // groups)
        return into_quantized(moves, node, affine, output_axis=0, spread=spread)
    shared = affine.scale.reshape(groups, -1) if not affine.channels % groups else affine.scale[None]
    if bool((shared == shared[0]).all()) and len(shared) == groups:
        return into_quantized(moves, node, affine, output_axis=1, spread=shared[0])
    return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"the groups of {node.label} share the scales of its integers")


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``W'[c] = s[c]·W[c]``."""
    op = cast(ConvTranspose, node.op)
    if slot != DATA or axis != op.channel_axis:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} does not read the map along its channels")
    if not (affine.is_scale or op.single):
        return Refusal(
            Reason.SHIFT_INTO_PADDING,
            f"{node.label} spreads a shift unevenly, by which positions of its kernel reach a place",
        )
    constants = conv_parameters(moves, node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    if weight.shape[0] != affine.channels:
        return wrong_channels(node, weight.shape[0], affine.channels, "input")
    if not affine.is_scale:

        def shifted() -> Constant | Refusal:
            numbers = weight.exact().reshape(op.groups, -1, weight.shape[1])
            added = (numbers * affine.shift.reshape(op.groups, -1, 1)).sum(axis=1).ravel()
            return round_vector(added if bias is None else bias.exact() + added, weight.dtype)

        refusal = moves.set(node, BIAS, Pending((weight.shape[1] * op.groups,), shifted))
        if refusal is not None or affine.is_shift:
            return refusal
    scale = affine.scale.reshape(affine.channels, *[1] * (len(weight.shape) - 1))
    return moves.set(node, WEIGHT, round_scaled(weight, scale, axes=(0,)))


def from_onnx(call: OnnxCall) -> Op:
    """ConvTranspose."""
    weight = call.input(WEIGHT)
    kernel = None if weight is None or weight.shape is None else weight.shape[2:]
    laid = None if kernel is None else call.window(len(kernel))
    plain = not any(call.attributes.get("output_padding", ())) and not call.attributes.get("output_shape")
    return ConvTranspose(int(call.attributes.get("group", 1)), single=plain and _single(kernel, laid))


def _single(kernel: Shape | None, laid: Window | None) -> bool:
    """Whether it is a kernel of one element at every place."""
    one = kernel is not None and all(size == 1 for size in kernel)
    return one and laid is not None and not laid.padded and set(laid.strides) <= {1}


def from_aten(call: AtenCall) -> Mapped | None:
    """``conv_transpose2d`` and the like, and ``convolution`` where it says so."""
    if not call.given.get("transposed", True):
        return None
    given, shape = call.given, call.shape("weight")
    kernel = None if shape is None else shape[2:]
    laid = None if kernel is None else window(given["stride"], given["padding"], given["dilation"], kernel)
    extended = given.get("output_padding", 0)
    plain = not any(extended if isinstance(extended, list | tuple) else [extended])
    op = ConvTranspose(int(given["groups"]), single=plain and _single(kernel, laid))
    return call.reads(op, "input", "weight", "bias")


RULE = Rule("conv-transpose", ConvTranspose, backward, forward)

OPERATOR = Operator(
    ConvTranspose,
    RULE,
    onnx={"ConvTranspose": from_onnx},
    aten=(
        Aten(
            ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "_convolution"),
            from_aten,
        ),
    ),
)
