"""Convolution → BatchNorm.

``s[o]·(Σ W[o,c]⋆x[c] + b[o]) + t[o] = Σ (s[o]·W[o,c])⋆x[c] + (s[o]·b[o] + t[o])``

Exact for every spatial rank, stride, padding, padding mode, dilation and number of groups: all of them
act on x, and the map acts on what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_bias, round_scaled
from convbn.fuse.refusal import Refusal
from convbn.fuse.rules.rule import Rule, parameters, wrong_axis, wrong_channels
from convbn.fuse.view.dataflow import Node
from convbn.fuse.view.edits import SetConstant
from convbn.fuse.view.ops import BIAS, WEIGHT, Conv

__all__ = ["RULE"]


def absorb(node: Node, affine: Affine, axis: int) -> Sequence[SetConstant] | Refusal:
    """``W'[o] = s[o]·W[o]``, ``b' = s·b + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    constants = parameters(node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    if weight.shape[0] != affine.channels:
        return wrong_channels(node, weight.shape[0], affine.channels)
    scaled = round_scaled(weight, affine.scale.reshape(-1, *[1] * (len(weight.shape) - 1)), axes=(0,))
    if isinstance(scaled, Refusal):
        return scaled
    shifted = round_bias(None if bias is None else bias.array(), affine, scaled.dtype)
    if isinstance(shifted, Refusal):
        return shifted
    return SetConstant(node, WEIGHT, scaled.constant), SetConstant(node, BIAS, shifted.constant)


RULE = Rule("batchnorm-into-conv", Conv, absorb)
