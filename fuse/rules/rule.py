"""What a rule is: one linear operator, and how its parameters take in the affine map that follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node
from convbn.fuse.view.edits import SetConstant
from convbn.fuse.view.ops import BIAS, WEIGHT, Op

__all__ = ["Rule", "constant_at", "parameters", "wrong_axis", "wrong_channels"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A way for an operator to take in an affine map.

    Attributes:
        name: what reports, ``--only`` and ``--skip`` call it.
        operator: the class of operators it is for.
        absorb: ``(node, map, axis) -> edits``: the edits after which the node's output is the map, along
            ``axis`` of that output, of what it was; or a refusal.
    """

    name: str
    operator: type[Op]
    absorb: Callable[[Node, Affine, int], Sequence[SetConstant] | Refusal]


def constant_at(node: Node, slot: int, what: str) -> Constant | Refusal | None:
    """The constant at ``slot``, None where the slot is empty, or why there is none."""
    value = node.input(slot)
    if value is None:
        return None
    if value.constant is None:
        return value.not_constant or Refusal(
            Reason.WEIGHT_NOT_CONSTANT,
            f"the {what} '{value.name}' of {node.label} is computed while the model runs",
        )
    return value.constant


def parameters(node: Node) -> tuple[Constant, Constant | None] | Refusal:
    """Weight and bias of a linear layer, or the refusal where they are not constants."""
    weight = constant_at(node, WEIGHT, "weight")
    if isinstance(weight, Refusal):
        return weight
    if weight is None:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{node.label} has no weight")
    bias = constant_at(node, BIAS, "bias")
    return bias if isinstance(bias, Refusal) else (weight, bias)


def wrong_axis(node: Node, axis: int) -> Refusal | None:
    """The refusal where the map's axis is not, or not provably, the layer's output channel axis."""
    channel_axis = node.op.output_axis_of(node.outputs[0].rank)
    if channel_axis == axis:
        return None
    where = f"is {channel_axis}"
    if channel_axis is None:
        where = "cannot be known, because its rank is not (example inputs or stored shapes would settle it)"
    return Refusal(
        Reason.AXIS_NOT_PROVEN,
        f"the BatchNorm normalises axis {axis}, and the output channel axis of {node.label} {where}",
    )


def wrong_channels(node: Node, channels: int, given: int) -> Refusal:
    """The refusal where the map has another number of channels than the layer."""
    return Refusal(
        Reason.PARAMETERS_MALFORMED,
        f"{node.label} has {channels} output channels and the BatchNorm {given}",
    )
