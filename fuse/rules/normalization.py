"""LayerNorm, GroupNorm, InstanceNorm, RMSNorm and a map behind them: ``s·(n(x)·γ + β) + t = n(x)·(s·γ) + (s·β + t)``.

Nothing passes them forwards: n(s·x + t) is not n(x), for ε is in it. Their own γ and β stay where they are:
the operator applies them on its way, so moving them into the next layer would save nothing.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule, parameters, wrong_axis, wrong_channels
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import BIAS, WEIGHT, Normalization

__all__ = ["RULE"]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``γ' = s·γ``, ``β' = s·β + t``."""
    if output is not node.outputs[0]:
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"'{output.name}' is a statistic of {node.label}")
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    constants = parameters(moves, node)
    if isinstance(constants, Refusal):
        return constants
    gamma, beta = constants
    for constant in (gamma, beta):
        if constant is not None and constant.shape != (affine.channels,):
            return wrong_channels(node, int(np.prod(constant.shape)), affine.channels)
    if beta is not None or not affine.is_scale:
        if not cast(Normalization, node.op).shifts:
            return Refusal(Reason.NO_BIAS, f"{node.label} has no β that could take the shift")
        exact = 0.0 if beta is None else beta.exact()
        shifted = round_vector(affine.scale * exact + affine.shift, gamma.dtype, "shift β")
        if (refusal := moves.set(node, BIAS, shifted)) is not None:
            return refusal
    return moves.set(node, WEIGHT, round_scaled(gamma, affine.scale, axes=(0,)))


RULE = Rule("normalization", Normalization, backward)
