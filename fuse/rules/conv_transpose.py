"""Transposed convolution → BatchNorm.

As for a convolution, but the output channels are the weight's *second* axis, ``[C, O/groups, *K]``, and
groups run along its first: with ``W`` seen as ``[groups, C/groups, O/groups, *K]``,

``W'[g, c, o] = s[g·(O/groups) + o] · W[g, c, o]``, ``b' = s·b + t``.

Exact for every spatial rank, stride, padding, output padding, dilation and number of groups. Tools that
scale axis 0, or broadcast ``s`` over the second axis, are wrong as soon as groups > 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_bias, round_scaled
from convbn.fuse.refusal import Refusal
from convbn.fuse.rules.rule import Rule, parameters, wrong_axis, wrong_channels
from convbn.fuse.view.dataflow import Node
from convbn.fuse.view.edits import SetConstant
from convbn.fuse.view.ops import BIAS, WEIGHT, ConvTranspose

__all__ = ["RULE"]


def absorb(node: Node, affine: Affine, axis: int) -> Sequence[SetConstant] | Refusal:
    """``W'[g, :, o] = s[g, o]·W[g, :, o]``, ``b' = s·b + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    constants = parameters(node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    groups = cast(ConvTranspose, node.op).groups
    inputs, outputs, *kernel = weight.shape
    if groups * outputs != affine.channels:
        return wrong_channels(node, groups * outputs, affine.channels)
    scale = affine.scale.reshape(groups, 1, outputs, *[1] * len(kernel))
    grouped = (groups, inputs // groups, outputs, *kernel)
    scaled = round_scaled(weight, scale, axes=(0, 2), seen_as=grouped)
    if isinstance(scaled, Refusal):
        return scaled
    shifted = round_bias(None if bias is None else bias.array(), affine, scaled.dtype)
    if isinstance(shifted, Refusal):
        return shifted
    return SetConstant(node, WEIGHT, scaled.constant), SetConstant(node, BIAS, shifted.constant)


RULE = Rule("batchnorm-into-conv-transpose", ConvTranspose, absorb)
