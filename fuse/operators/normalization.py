"""LayerNorm, GroupNorm, InstanceNorm, RMSNorm and a map behind them: ``s·(n(x)·γ + β) + t = n(x)·(s·γ) + (s·β + t)``.

Nothing passes them forwards: n(s·x + t) is not n(x), for ε is in it. Their own γ and β stay where they are:
the operator applies them on its way, so moving them into the next layer would save nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, parameters, wrong_axis, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import BIAS, DATA, WEIGHT, Labelled, Op

__all__ = ["OPERATOR", "Normalization"]


@dataclass(frozen=True, slots=True)
class Normalization(Labelled):
    """A normalisation by the data's own statistics, then ``·γ + β`` along ``channel_axis``.

    Slots: data, γ ``[C]``, β ``[C]``, which may be absent. ``channel_axis`` None is the last one (LayerNorm);
    1 for group and instance normalisation. ``shifts`` is False where the operator has no β (RMSNorm).
    """

    channel_axis: int | None
    shifts: bool = True

    def output_axis_of(self, rank: int | None) -> int | None:
        """The channel axis, counted from the front."""
        last = None if rank is None else rank - 1
        return last if self.channel_axis is None else self.channel_axis


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


def from_onnx(call: OnnxCall) -> Op | None:
    """Over the last axis, or the channels of one sample."""
    if call.operator in ("LayerNormalization", "RMSNormalization"):
        data = call.input(DATA)
        if data is None or data.rank is None or call.axis(data, -1) != data.rank - 1:
            return None
        return Normalization(call.operator, None, shifts=call.operator == "LayerNormalization")
    # Before opset 21 a GroupNormalization had one γ a group.
    by_channel = call.operator == "InstanceNormalization" or call.opset >= 21
    return Normalization(call.operator, 1) if by_channel else None


def from_aten(call: AtenCall) -> Mapped | None:
    """``layer_norm`` and ``rms_norm`` over one axis, and ``group_norm``."""
    if "group_norm" in call.name:
        return call.reads(Normalization("GroupNorm", 1), "input", "weight", "bias")
    if len(call.given["normalized_shape"]) != 1:
        return None
    if "rms_norm" in call.name:
        return call.reads(Normalization("RMSNorm", None, shifts=False), "input", "weight")
    return call.reads(Normalization("LayerNorm", None), "input", "weight", "bias")


def instance_norm_from_aten(call: AtenCall) -> Mapped | None:
    """``instance_norm``; with its own running statistics it is a BatchNorm outside training."""
    by_sample = call.given.get("use_input_stats", True)
    if by_sample is True:
        return call.reads(Normalization("InstanceNorm", 1), "input", "weight", "bias")
    if by_sample is not False or None in (call.tensor("running_mean"), call.tensor("running_var")):
        return None
    op = BatchNorm(float(call.given.get("eps", 1e-5)))
    return call.reads(op, "input", "weight", "bias", "running_mean", "running_var")


_FUNCTIONAL = (
    *("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
)

RULE = Rule("normalization", Normalization, backward)

OPERATOR = Operator(
    Normalization,
    RULE,
    onnx=dict.fromkeys(
        ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"), from_onnx
    ),
    aten=(
        Aten(("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "rms_norm"), from_aten),
        Aten(("instance_norm",), instance_norm_from_aten, _FUNCTIONAL, keeps_rank=True),
    ),
)
