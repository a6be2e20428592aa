"""From a dataflow view to a plan: which BatchNorm goes where, and why the others stay.

Every BatchNorm is offered to the layer that produces its input, in running order and until a round
changes nothing. A fold is accepted as a whole or not at all: every edit it needs is checked against what
the frontend can do here before the first is applied to the view.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from convbn.fuse.algebra.affine import Affine, from_batchnorm
from convbn.fuse.options import FuseOptions
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.registry import rule_for
from convbn.fuse.rules.rule import constant_at
from convbn.fuse.view.dataflow import Node, Value, View
from convbn.fuse.view.edits import Bypass, Edit
from convbn.fuse.view.ops import BatchNorm

__all__ = ["Folded", "Kept", "Merged", "Plan", "make_plan"]


@dataclass(frozen=True, slots=True)
class Folded:
    """A BatchNorm that goes: into which nodes, by which rule."""

    name: str
    into: tuple[str, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A BatchNorm that stays, and why."""

    name: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Merged:
    """Linear branches or chains that become one node."""

    names: tuple[str, ...]
    into: str
    rule: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a model, before anything is done.

    Attributes:
        folded, kept: every BatchNorm of the view stands in exactly one of them.
        merged: nodes that become one.
        edits: what the frontend must do, in this order.
    """

    folded: list[Folded] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    merged: list[Merged] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Fold:
    into: tuple[str, ...]
    rule: str
    edits: tuple[Edit, ...]


def make_plan(view: View, options: FuseOptions) -> Plan:
    """Plan every fold that is exact; the view is left as the model will be.

    Args:
        view: the dataflow of the model; it is changed.
        options: which rules may be used.
    """
    plan = Plan()
    refusals: dict[str, Refusal] = {}
    progress = True
    while progress:
        progress = False
        for node in view.batchnorms():
            outcome = _fold(view, node, options)
            if isinstance(outcome, Refusal):
                refusals[node.name] = outcome
                continue
            for edit in outcome.edits:
                view.apply(edit)
            plan.edits.extend(outcome.edits)
            plan.folded.append(Folded(node.name, outcome.into, outcome.rule))
            progress = True
    for node in view.batchnorms():
        refusal = refusals[node.name]
        plan.kept.append(Kept(node.name, refusal.reason, refusal.detail))
    return plan


def _fold(view: View, node: Node, options: FuseOptions) -> _Fold | Refusal:
    """The edits that make ``node`` disappear into its producer, or why there are none."""
    affine = affine_of(node)
    if isinstance(affine, Refusal):
        return affine
    producer = _only_reader(node)
    if isinstance(producer, Refusal):
        return producer
    rule = rule_for(producer.op)
    if rule is None:
        return Refusal(
            Reason.PRODUCER_NOT_LINEAR,
            f"its input comes from {producer.label}, which has no weights to take a scale and a shift",
        )
    if not options.allows(rule.name):
        return Refusal(Reason.SKIPPED, f"the rule {rule.name} is switched off")
    axis = node.op.channel_axis if isinstance(node.op, BatchNorm) else 1
    absorbed = rule.absorb(producer, affine, axis)
    if isinstance(absorbed, Refusal):
        return absorbed
    edits: tuple[Edit, ...] = (*absorbed, Bypass(node))
    for edit in edits:
        refusal = view.check(edit)
        if refusal is not None:
            return refusal
    return _Fold((producer.name,), rule.name, edits)


def affine_of(node: Node) -> Affine | Refusal:
    """The affine map that a BatchNorm node is, or why it is none."""
    op = node.op
    if not isinstance(op, BatchNorm):
        raise TypeError(f"{node.label} is not a BatchNorm")
    if op.training:
        return Refusal(Reason.TRAINING_MODE, "it normalises by the mean and variance of the batch at hand")
    used = [output.name for output in node.outputs[1:] if output.readers or output.observed]
    if used:
        return Refusal(Reason.EXTRA_OUTPUTS, f"its further outputs are used: {', '.join(used)}")
    arrays = []
    for slot, what in enumerate(("scale γ", "shift β", "mean μ", "variance σ²"), start=1):
        constant = constant_at(node, slot, what)
        if isinstance(constant, Refusal):
            if constant.reason is Reason.WEIGHT_NOT_CONSTANT:
                return Refusal(Reason.PARAMETERS_NOT_CONSTANT, constant.detail)
            return constant
        arrays.append(None if constant is None else constant.array())
    gamma, beta, mean, variance = arrays
    if mean is None or variance is None:
        return Refusal(Reason.PARAMETERS_MALFORMED, "it has no running mean or no running variance")
    return from_batchnorm(gamma, beta, mean, variance, op.epsilon)


def _only_reader(node: Node) -> Node | Refusal:
    """The producer of the node's input, if nobody else sees what it produces."""
    value = node.input(0)
    if value is None or value.producer is None:
        return Refusal(
            Reason.NO_PRODUCER, f"its input {_named(value)} is an input or a constant of the model"
        )
    producer = value.producer
    if value.observed:
        return Refusal(Reason.OBSERVED, f"the output of {producer.label} is also {value.observed}")
    others = [reader.node.label for reader in value.readers if reader.node is not node]
    if others:
        listed = ", ".join(sorted(set(others))[:4]) + (", …" if len(set(others)) > 4 else "")
        return Refusal(
            Reason.SEVERAL_READERS,
            f"the output of {producer.label} is also read by {listed}, which must not see it scaled",
        )
    if producer.scope != node.scope:
        return Refusal(
            Reason.OTHER_SCOPE,
            f"{producer.label} stands outside the {node.scope or 'main graph'} that the BatchNorm stands in",
        )
    return producer


def _named(value: Value | None) -> str:
    return "" if value is None else f"'{value.name}'"
