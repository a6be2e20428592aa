"""BatchNorm and an affine map, on either side: two affine maps in a row are one.

The BatchNorm stays one. With its own map ``(s₁, t₁)``, ``s₁ = γ/√(σ² + ε)``:

* a map ``(s, t)`` behind it: ``γ' = s·γ``, ``β' = s·β + t``;
* a map in front of it: ``γ' = s·γ``, ``β' = β + s₁·(t + (s − 1)·μ)``, since
  ``γ·(s·x + t − μ)/√(σ²+ε) + β = s·γ·(x − μ)/√(σ²+ε) + β'``.

It matters where the BatchNorm cannot go anywhere itself: behind a graph input or a nonlinearity.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule, wrong_axis, wrong_channels
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.ops import DATA, BatchNorm

__all__ = ["RULE"]

GAMMA, BETA, MEAN, VARIANCE = 1, 2, 3, 4


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``γ' = γ·s``, ``β' = β·s + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    constants = _constants(moves, node, affine)
    if isinstance(constants, Refusal):
        return constants
    gamma, beta, _, _ = constants
    if (refusal := moves.set(node, GAMMA, round_scaled(gamma, affine.scale, axes=(0,)))) is not None:
        return refusal
    return moves.set(
        node, BETA, round_vector(affine.scale * beta.exact() + affine.shift, beta.dtype, "shift β")
    )


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``γ' = γ·s``, ``β' = β + s₁·(t + (s − 1)·μ)``."""
    op = cast(BatchNorm, node.op)
    if slot != DATA or axis != op.channel_axis:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} does not read the map along its channels")
    constants = _constants(moves, node, affine)
    if isinstance(constants, Refusal):
        return constants
    gamma, beta, mean, variance = constants
    spread = variance.exact() + op.epsilon
    if not (spread > 0).all():
        return Refusal(Reason.BAD_STATISTICS, f"σ² + ε of {node.label} is not positive everywhere")
    own = gamma.exact() / np.sqrt(spread)
    moved = beta.exact() + own * (affine.shift + (affine.scale - 1) * mean.exact())
    if (refusal := moves.set(node, GAMMA, round_scaled(gamma, affine.scale, axes=(0,)))) is not None:
        return refusal
    return moves.set(node, BETA, round_vector(moved, beta.dtype, "shift β"))


def _constants(
    moves: Moves, node: Node, affine: Affine
) -> tuple[Constant, Constant, Constant, Constant] | Refusal:
    """γ, β, μ and σ², with 1 and 0 where γ and β are absent."""
    if cast(BatchNorm, node.op).training:
        return Refusal(Reason.TRAINING_MODE, f"{node.label} normalises by the batch at hand")
    found: list[Constant | None] = []
    for slot in (GAMMA, BETA, MEAN, VARIANCE):
        constant = moves.constant(node, slot)
        if isinstance(constant, Refusal):
            return constant
        found.append(constant)
    gamma, beta, mean, variance = found
    if mean is None or variance is None:
        return Refusal(Reason.PARAMETERS_MALFORMED, f"{node.label} has no mean or no variance")
    if mean.shape != (affine.channels,):
        return wrong_channels(node, mean.shape[0] if mean.shape else 1, affine.channels)
    one = Constant.of(np.ones(mean.shape, mean.dtype))
    return gamma or one, beta or Constant.of(np.zeros(mean.shape, mean.dtype)), mean, variance


RULE = Rule("batchnorm", BatchNorm, backward, forward)
