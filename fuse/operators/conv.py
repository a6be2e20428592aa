"""Convolution and an affine map, on either side.

Behind it: ``s[o]·(Σ W[o,c]⋆x[c] + b[o]) + t[o] = Σ (s[o]·W[o,c])⋆x[c] + (s[o]·b[o] + t[o])``. Exact for every
spatial rank, stride, padding, padding mode, dilation and number of groups: all of them act on x, and the
map acts on what comes out.

In front of it: ``Σ W[o,c]⋆(s[c]·x[c] + t[c]) + b[o] = Σ (W[o,c]·s[c])⋆x[c] + (b[o] + Σ W[o,c,k]·t[c])``. The scale
is always exact, since zeros stay zeros. The shift is exact only where the kernel never lies over padding:
zeros around x are not ``t`` around x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, window
from convbn.fuse.operators.dequantize import into_quantized, is_dequantized
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Pending, Rule, parameters, wrong_axis, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, DATA, WEIGHT, Op, Window

__all__ = ["OPERATOR", "Conv", "conv_parameters"]


@dataclass(frozen=True, slots=True)
class Conv(Op):
    """Cross-correlation of any spatial rank, ``y[n,o] = Σ_c W[o,c] ⋆ x[n,c] + b[o]``.

    Slots: data ``[N, C, *S]``, weight ``[O, C/groups, *K]``, bias ``[O]``. The window says where the
    kernel is laid, with zeros around the data; None where the frontend does not know, and then no rule
    may assume that there are no zeros. ``channel_axis`` is 0 for data of one sample, ``[C, *S]``, and
    None where the rank is not known.
    """

    groups: int
    channel_axis: int | None = 1
    window: Window | None = None

    def output_axis_of(self, rank: int | None) -> int | None:
        """Whatever the rank."""
        return self.channel_axis


def conv_parameters(moves: Moves, node: Node) -> tuple[Constant, Constant | None] | Refusal:
    """Weight and bias of a convolution, or the refusal where they are not constants or do not fit each other."""
    constants = parameters(moves, node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    groups = cast(Conv, node.op).groups  # or a ConvTranspose
    if len(weight.shape) < 3 or groups < 1 or weight.shape[0] % groups:
        return Refusal(
            Reason.PARAMETERS_MALFORMED,
            f"the weight of {node.label} has shape {list(weight.shape)}, and its groups are {groups}",
        )
    outputs = weight.shape[0] if isinstance(node.op, Conv) else weight.shape[1] * groups
    if bias is not None and bias.shape != (outputs,):
        return Refusal(Reason.PARAMETERS_MALFORMED, f"the bias of {node.label} has shape {list(bias.shape)}")
    return constants


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``W'[o] = s[o]·W[o]``, ``b' = s·b + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    if is_dequantized(node):
        return into_quantized(moves, node, affine, output_axis=0)
    constants = conv_parameters(moves, node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    if weight.shape[0] != affine.channels:
        return wrong_channels(node, weight.shape[0], affine.channels)
    if not affine.is_shift:
        scale = affine.scale.reshape(affine.channels, *[1] * (len(weight.shape) - 1))
        scaled = Pending(weight.shape, lambda: round_scaled(weight, scale, axes=(0,)))
        if (refusal := moves.set(node, WEIGHT, scaled)) is not None:
            return refusal

    def shifted() -> Constant | Refusal:
        total = affine.shift if bias is None else affine.scale * bias.exact() + affine.shift
        return round_vector(total, weight.dtype)

    return moves.set(node, BIAS, Pending(weight.shape[:1], shifted))


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``W'[o,c] = W[o,c]·s[c]``, ``b'[o] = b[o] + Σ W[o,c,k]·t[c]``."""
    op = cast(Conv, node.op)
    if slot != DATA or axis != op.channel_axis:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} does not read the map along its channels")
    constants = conv_parameters(moves, node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    outputs, per_group, *kernel = weight.shape
    if per_group * op.groups != affine.channels:
        return wrong_channels(node, per_group * op.groups, affine.channels, "input")
    seen_as = (op.groups, outputs // op.groups, per_group, *kernel)
    if not affine.is_scale:
        if op.window is None or op.window.padded:
            left = (
                "leaves its padding to the runtime, and a shift would lack in the zeros that it may put there"
            )
            puts = "puts zeros around its data, where the shift would lack"
            detail = f"{node.label} {left if op.window is None else puts}"
            return Refusal(Reason.SHIFT_INTO_PADDING, detail)

        def shifted() -> Constant | Refusal:
            exact = weight.exact().reshape(seen_as).sum(axis=tuple(range(3, len(seen_as))))
            added = (exact * affine.shift.reshape(op.groups, 1, per_group)).sum(axis=-1).ravel()
            return round_vector(added if bias is None else bias.exact() + added, weight.dtype)

        if (refusal := moves.set(node, BIAS, Pending((outputs,), shifted))) is not None:
            return refusal
    if affine.is_shift:
        return None
    scale = affine.scale.reshape(op.groups, 1, per_group, *[1] * len(kernel))
    scaled = Pending(weight.shape, lambda: round_scaled(weight, scale, axes=(0, 2), seen_as=seen_as))
    return moves.set(node, WEIGHT, scaled)


def from_onnx(call: OnnxCall) -> Op:
    """Conv; the place of the kernel is not known where padding is left to the runtime or the rank is not known."""
    weight = call.input(WEIGHT)
    kernel = None if weight is None or weight.shape is None else weight.shape[2:]
    # SAME leaves ceil(size/stride) places, which a kernel of one element reaches without padding.
    laid = None if kernel is None else call.window(len(kernel), unpadded=all(size == 1 for size in kernel))
    return Conv(groups=int(call.attributes.get("group", 1)), window=laid)


def from_aten(call: AtenCall) -> Mapped | None:
    """``conv2d`` and the like, and ``convolution``, which says whether it is transposed."""
    given, shape = call.given, call.shape("weight")
    if given.get("transposed", False):
        return None
    laid = None if shape is None else window(given["stride"], given["padding"], given["dilation"], shape[2:])
    return call.reads(Conv(int(given["groups"]), window=laid), "input", "weight", "bias")


RULE = Rule("conv", Conv, backward, forward)

OPERATOR = Operator(
    Conv,
    RULE,
    onnx={"Conv": from_onnx},
    aten=(
        Aten(("conv1d", "conv2d", "conv3d"), from_aten),
        Aten(("convolution", "_convolution"), from_aten),
    ),
)
