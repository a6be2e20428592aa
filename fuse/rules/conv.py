"""Convolution and an affine map, on either side.

Behind it: ``s[o]·(Σ W[o,c]⋆x[c] + b[o]) + t[o] = Σ (s[o]·W[o,c])⋆x[c] + (s[o]·b[o] + t[o])``. Exact for every
spatial rank, stride, padding, padding mode, dilation and number of groups: all of them act on x, and the
map acts on what comes out.

In front of it: ``Σ W[o,c]⋆(s[c]·x[c] + t[c]) + b[o] = Σ (W[o,c]·s[c])⋆x[c] + (b[o] + Σ W[o,c,k]·t[c])``. The scale
is always exact, since zeros stay zeros. The shift is exact only where the kernel never lies over padding:
zeros around x are not ``t`` around x.
"""

from __future__ import annotations

from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.dequantize import into_quantized, is_dequantized
from convbn.fuse.rules.rule import Moves, Rule, conv_parameters, wrong_axis, wrong_channels
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import BIAS, DATA, WEIGHT, Conv

__all__ = ["RULE"]


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
    shifted = affine.shift if bias is None else affine.scale * bias.exact() + affine.shift
    if not affine.is_shift:
        scale = affine.scale.reshape(affine.channels, *[1] * (len(weight.shape) - 1))
        if (refusal := moves.set(node, WEIGHT, round_scaled(weight, scale, axes=(0,)))) is not None:
            return refusal
    return moves.set(node, BIAS, round_vector(shifted, weight.dtype))


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
            return Refusal(
                Reason.SHIFT_INTO_PADDING,
                f"{node.label} puts zeros around its data, where the shift would lack",
            )
        exact = weight.exact().reshape(seen_as).sum(axis=tuple(range(3, len(seen_as))))
        added = (exact * affine.shift.reshape(op.groups, 1, per_group)).sum(axis=-1).ravel()
        total = added if bias is None else bias.exact() + added
        if (refusal := moves.set(node, BIAS, round_vector(total, weight.dtype))) is not None:
            return refusal
    if affine.is_shift:
        return None
    scale = affine.scale.reshape(op.groups, 1, per_group, *[1] * len(kernel))
    return moves.set(node, WEIGHT, round_scaled(weight, scale, axes=(0, 2), seen_as=seen_as))


RULE = Rule("conv", Conv, backward, forward)
