"""BatchNorm → BatchNorm: two affine maps in a row are one.

The first one stays a BatchNorm, now with ``γ' = s₁s₂·√(σ² + ε)`` and ``β' = s₂·β + t₂`` where
``(s₁, t₁)`` is its own map and ``(s₂, t₂)`` the one that follows:
``γ'·(x − μ)/√(σ² + ε) + β' = s₂·(s₁·x + t₁) + t₂``, and ``γ'`` is ``γ·s₂`` exactly.

It matters where the first cannot go anywhere itself: behind a graph input or a nonlinearity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_bias, round_scaled
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Rule, constant_at, wrong_axis, wrong_channels
from convbn.fuse.view.dataflow import Constant, Node
from convbn.fuse.view.edits import SetConstant
from convbn.fuse.view.ops import BatchNorm

__all__ = ["RULE"]

GAMMA, BETA, MEAN = 1, 2, 3


def absorb(node: Node, affine: Affine, axis: int) -> Sequence[SetConstant] | Refusal:
    """``γ' = γ·s``, ``β' = β·s + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    if cast(BatchNorm, node.op).training:
        return Refusal(Reason.TRAINING_MODE, f"{node.label} before it normalises by the batch at hand")
    mean = constant_at(node, MEAN, "mean")
    gamma, beta = constant_at(node, GAMMA, "scale"), constant_at(node, BETA, "shift")
    for constant in (gamma, beta, mean):
        if isinstance(constant, Refusal):
            return constant
    if mean is None or isinstance(mean, Refusal) or isinstance(gamma, Refusal) or isinstance(beta, Refusal):
        return Refusal(Reason.PARAMETERS_MALFORMED, f"{node.label} has no mean")
    if mean.shape != (affine.channels,):
        return wrong_channels(node, mean.shape[0] if mean.shape else 1, affine.channels)
    dtype = mean.array().dtype
    one, zero = Constant.of(np.ones(mean.shape, dtype)), Constant.of(np.zeros(mean.shape, dtype))
    scaled = round_scaled(gamma or one, affine.scale, axes=(0,))
    if isinstance(scaled, Refusal):
        return scaled
    shift = (beta or zero).array()
    shifted = round_bias(shift, affine, shift.dtype)
    if isinstance(shifted, Refusal):
        return shifted
    return SetConstant(node, GAMMA, scaled.constant), SetConstant(node, BETA, shifted.constant)


RULE = Rule("batchnorm-into-batchnorm", BatchNorm, absorb)
