"""Linear layer (Gemm, MatMul, ``nn.Linear``) → BatchNorm.

``s·(α·xW + β·b) + t = α·x(W·diag(s)) + β·b'`` with ``b' = s·b + t/β``; in ONNX terms α and β are the
factors of a Gemm, 1 elsewhere. A layer whose β is 0 ignores its bias and cannot take the shift.

Exact when the BatchNorm's axis is the output's last one, where W has its output axis. A BatchNorm always
works on axis 1, so the output must be known to have rank 2: over ``[N, L, C]`` the BatchNorm would
normalise the sequence, and with L == C nothing but the numbers would tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_bias, round_scaled
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Rule, parameters, wrong_axis, wrong_channels
from convbn.fuse.view.dataflow import Node
from convbn.fuse.view.edits import SetConstant
from convbn.fuse.view.ops import BIAS, WEIGHT, Linear

__all__ = ["RULE"]


def absorb(node: Node, affine: Affine, axis: int) -> Sequence[SetConstant] | Refusal:
    """``W' = W·diag(s)`` on the output axis, ``b' = s·b + t/β``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    op = cast(Linear, node.op)
    constants = parameters(node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    if len(weight.shape) != 2:
        return Refusal(
            Reason.AXIS_NOT_PROVEN, f"the weight of {node.label} has rank {len(weight.shape)}, not 2"
        )
    outputs = weight.shape[op.output_axis]
    if outputs != affine.channels:
        return wrong_channels(node, outputs, affine.channels)
    factor = op.bias_factor
    if factor == 0 or not np.isfinite(factor):
        return Refusal(Reason.NO_BIAS, f"{node.label} multiplies its bias by {factor}")
    row = None
    if bias is not None:
        if bias.shape not in ((), (1,), (outputs,), (1, 1), (1, outputs)):
            return Refusal(
                Reason.AXIS_NOT_PROVEN,
                f"the bias of {node.label} has shape {list(bias.shape)}, not [{outputs}]",
            )
        row = np.broadcast_to(bias.array().reshape(-1), (outputs,))
    shape = [1, 1]
    shape[op.output_axis] = outputs
    scaled = round_scaled(weight, affine.scale.reshape(shape), axes=(op.output_axis,))
    if isinstance(scaled, Refusal):
        return scaled
    shifted = round_bias(row, Affine(affine.scale, affine.shift / factor), scaled.dtype)
    if isinstance(shifted, Refusal):
        return shifted
    return SetConstant(node, WEIGHT, scaled.constant), SetConstant(node, BIAS, shifted.constant)


RULE = Rule("batchnorm-into-linear", Linear, absorb)
