"""From a dataflow view to a plan: which BatchNorm goes where, and why the others stay.

Every BatchNorm is tried in running order, until a round changes nothing. Its map ``(s, t)`` may go

1. *backward* as a whole, into what produces its input;
2. *forward* as a whole, into everything that reads its output;
3. *apart*: the shift ``t/s`` backward and the scale ``s`` forward, since ``s·x + t = s·(x + t/s)``, which is the way
   off a residual stream, where the shift is a matter of bookkeeping and only the scale must pass the
   activation; or the scale backward and the shift forward;
4. *backward but for the shift*, which stays as an addition, where a layer has no place for a bias. Not on images:
   there an addition costs what the BatchNorm did, and in runtimes with blocked layouts more.

A way is taken as a whole or not at all: :class:`convbn.fuse.plan.draft.Draft` checks every edit against what the
frontend can do before the first is applied to the view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from convbn.fuse.algebra.affine import Affine, from_batchnorm
from convbn.fuse.algebra.rounding import round_vector
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.draft import Draft
from convbn.fuse.plan.merger import merge_branches
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.broadcast import along, per_channel, shaped
from convbn.fuse.rules.rule import constant_at
from convbn.fuse.view.dataflow import Constant, Node, Value, View
from convbn.fuse.view.edits import Bypass, Edit, Replace
from convbn.fuse.view.ops import Arithmetic, BatchNorm, Elementwise

__all__ = ["WAYS", "Folded", "Kept", "Merged", "Plan", "make_plan"]

WAYS = ("batchnorm-forward", "batchnorm-apart", "batchnorm-to-add")
"""Names of the ways 2 to 4 in options and reports; way 1 is named after the rule that takes the map."""

_FARTHEST_SHIFT = 16.0
"""Standard deviations that a shift may move a stream by: more would cost it digits."""

_LARGEST_RANK_OF_AN_ADDITION = 3
"""Measured in onnxruntime 1.32 on the CPU: convmixer_768_32 runs 5 % slower with additions in the place of BatchNorms,
which its blocked layout [N, C/8, H, W, 8] takes as depthwise convolutions; levit_128s runs 3 % faster."""


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
        merged: nodes that became part of others.
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
        for node in _maps(view):
            outcome = _fold(view, node, options)
            if isinstance(outcome, Refusal):
                refusals[node.name] = outcome
                continue
            batchnorm = isinstance(node.op, BatchNorm)
            for edit in outcome.edits:
                view.apply(edit)
            plan.edits.extend(outcome.edits)
            if batchnorm:
                plan.folded.append(Folded(node.name, outcome.into, outcome.rule))
            else:
                # A sum with 0 or a product with 1 goes without going anywhere.
                plan.merged.append(Merged((node.name,), (*outcome.into, node.name)[0], outcome.rule))
            progress = True
        if view.pure and not progress:
            # A merge leaves fewer readers behind, and so perhaps a way for a map that had none.
            progress = _merge(view, plan, options)
    for node in view.batchnorms():
        refusal = refusals[node.name]
        plan.kept.append(Kept(node.name, refusal.reason, refusal.detail))
    return plan


def _merge(view: View, plan: Plan, options: FuseOptions) -> bool:
    """Merge linear branches; whether there were any."""
    before = len(plan.edits)
    for merge in merge_branches(view, options, affine_of):
        plan.edits.extend(merge.edits)
        maps = [node for node in merge.gone if isinstance(node.op, BatchNorm)]
        plan.folded.extend(Folded(node.name, (merge.into.name,), merge.rule) for node in maps)
        names = tuple(node.name for node in merge.gone if node not in maps)
        plan.merged.append(Merged(names, merge.into.name, merge.rule))
    return len(plan.edits) > before


def _maps(view: View) -> Iterator[Node]:
    """What is an affine map: BatchNorms, and in graphs also sums and products with a constant."""
    kinds = (BatchNorm, Elementwise) if view.pure else (BatchNorm,)
    return (node for node in list(view.nodes) if isinstance(node.op, kinds))


def _fold(view: View, node: Node, options: FuseOptions) -> _Fold | Refusal:
    """The edits that make ``node`` disappear, or why there are none."""
    found = affine_of(node)
    if isinstance(found, Refusal):
        return found
    affine, axis = found
    source = node.input(_data_slot(node))
    if source is None or (source.producer is None and not view.pure):
        return Refusal(
            Reason.NO_PRODUCER, f"its input {_named(source)} is an input or a constant of the model"
        )
    ways: list[Callable[[], _Fold | Refusal]] = [lambda: _backward(view, node, source, affine, axis, options)]
    if view.pure:
        ways.append(lambda: _forward(view, node, affine, axis, options))
        if isinstance(node.op, BatchNorm):
            ways.append(lambda: _apart(view, node, source, affine, axis, options))
            ways.append(lambda: _to_add(view, node, source, affine, axis, options))
    refusals: list[Refusal] = []
    for way in ways:
        outcome = way()
        if isinstance(outcome, _Fold):
            return outcome
        refusals.append(outcome)
    return _summary(refusals)


def _summary(refusals: list[Refusal]) -> Refusal:
    """Why it stays: what stops it backward and, if that was tried, what stops it forward."""
    if len(refusals) == 1 or refusals[0].reason is Reason.SKIPPED:
        return refusals[0]
    backward, forward = refusals[0], refusals[1]
    return Refusal(backward.reason, f"backward, {backward.detail}; forward, {forward.detail}")


def _backward(
    view: View, node: Node, source: Value, affine: Affine, axis: int, options: FuseOptions
) -> _Fold | Refusal:
    draft = Draft(view, options, node)
    refusal = draft.produce(source, affine, axis, reader=node)
    return refusal if refusal is not None else _done(view, node, draft, draft.rule or "batchnorm-backward")


def _forward(view: View, node: Node, affine: Affine, axis: int, options: FuseOptions) -> _Fold | Refusal:
    if not options.allows(WAYS[0]):
        return Refusal(Reason.SKIPPED, f"the rule {WAYS[0]} is switched off")
    draft = Draft(view, options, node)
    refusal = draft.consume(node.outputs[0], affine, axis)
    return refusal if refusal is not None else _done(view, node, draft, WAYS[0])


def _apart(
    view: View, node: Node, source: Value, affine: Affine, axis: int, options: FuseOptions
) -> _Fold | Refusal:
    if not options.allows(WAYS[1]):
        return Refusal(Reason.SKIPPED, f"the rule {WAYS[1]} is switched off")
    inverse = Affine.scale_by(affine.scale).inverse()
    if inverse is None:
        return Refusal(Reason.ILL_CONDITIONED, "a scale of 0 leaves nothing for a shift to stand in for")
    shift = affine.shift * inverse.scale
    draft = Draft(view, options, node)
    refusal = draft.consume(node.outputs[0], Affine.scale_by(affine.scale), axis)
    if refusal is None and not _near(node, shift):
        refusal = Refusal(
            Reason.ILL_CONDITIONED,
            f"its shift is more than {_FARTHEST_SHIFT:.0f} standard deviations, which would cost the stream digits",
        )
    if refusal is None:
        refusal = draft.produce(source, Affine.shift_by(shift), axis, reader=node)
    if refusal is None:
        return _done(view, node, draft, WAYS[1])
    draft = Draft(view, options, node)
    other = draft.consume(node.outputs[0], Affine.shift_by(affine.shift), axis)
    if other is None:
        other = draft.produce(source, Affine.scale_by(affine.scale), axis, reader=node)
    return refusal if other is not None else _done(view, node, draft, WAYS[1])


def _near(node: Node, shift: np.ndarray) -> bool:
    """Whether the shift is of the size of what it is added to, by the BatchNorm's own statistics."""
    mean, variance = constant_at(node, 3, "mean μ"), constant_at(node, 4, "variance σ²")
    if not isinstance(mean, Constant) or not isinstance(variance, Constant):
        return False
    size = np.abs(mean.exact()) + np.sqrt(np.abs(variance.exact()))
    return bool((np.abs(shift) <= _FARTHEST_SHIFT * size).all())


def _to_add(
    view: View, node: Node, source: Value, affine: Affine, axis: int, options: FuseOptions
) -> _Fold | Refusal:
    if not options.allows(WAYS[2]):
        return Refusal(Reason.SKIPPED, f"the rule {WAYS[2]} is switched off")
    rank = source.rank if source.rank is not None else node.outputs[0].rank
    if rank is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, "the rank of its input is not known")
    if rank > _LARGEST_RANK_OF_AN_ADDITION:
        return Refusal(Reason.NO_BIAS, "an addition in its place would cost as much")
    draft = Draft(view, options, node)
    refusal = draft.produce(source, Affine.scale_by(affine.scale), axis, reader=node)
    if refusal is not None:
        return refusal
    beta = constant_at(node, 2, "shift β")
    if not isinstance(beta, Constant):
        return Refusal(Reason.PARAMETERS_NOT_CONSTANT, "it has no β to take the type of the addition from")
    constant = round_vector(along(affine.shift, axis, rank), beta.dtype)
    if isinstance(constant, Refusal):
        return constant
    edit = Replace(node, Elementwise(Arithmetic.ADD), (source, constant))
    refusal = view.check(edit)
    return refusal if refusal is not None else _Fold(draft.into, WAYS[2], (*draft.edits, edit))


def _done(view: View, node: Node, draft: Draft, rule: str) -> _Fold | Refusal:
    """The finished attempt with the node itself taken out."""
    edit = Bypass(node, _data_slot(node))
    refusal = view.check(edit)
    if refusal is not None:
        return refusal
    return _Fold(draft.into, rule, (*draft.edits, edit))


def affine_of(node: Node) -> tuple[Affine, int] | Refusal:
    """The affine map that a node is and the axis it works along, or why it is none."""
    if isinstance(node.op, Elementwise):
        return _affine_of_elementwise(node, node.op.operation)
    op = node.op
    if not isinstance(op, BatchNorm):
        raise TypeError(f"{node.label} is not an affine map")
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
        arrays.append(None if constant is None else constant.exact())
    gamma, beta, mean, variance = arrays
    if mean is None or variance is None:
        return Refusal(Reason.PARAMETERS_MALFORMED, "it has no running mean or no running variance")
    affine = from_batchnorm(gamma, beta, mean, variance, op.epsilon)
    return affine if isinstance(affine, Refusal) else (affine, op.channel_axis)


def _data_slot(node: Node) -> int:
    """Where the data comes in: a sum or product may have its constant on either side."""
    first = node.input(0)
    return 1 if isinstance(node.op, Elementwise) and first is not None and first.constant is not None else 0


def _affine_of_elementwise(node: Node, operation: Arithmetic) -> tuple[Affine, int] | Refusal:
    """``x ± c``, ``x·c`` and ``x/c`` with one number a channel."""
    no = Refusal(Reason.NOT_PER_CHANNEL, f"{node.label} is no map of one value with one number a channel")
    slot = _data_slot(node)
    data, other, rank = node.input(slot), node.input(1 - slot), node.outputs[0].rank
    if data is None or other is None or other.constant is None or data.constant is not None:
        return no
    if rank is None or data.rank != rank or data.shape is None or other.constant.dtype.kind != "f":
        return no
    axis = per_channel(other.constant.shape, rank)
    if axis is None:
        return no
    axis = axis if axis >= 0 else min(1, rank - 1)
    channels = data.shape[axis]
    if channels is None or (operation is Arithmetic.DIVIDE and slot == 1):
        return no
    constant = other.constant.exact()
    if constant.size not in (1, channels) or not np.isfinite(constant).all():
        return no
    vector = shaped(constant, channels).copy()
    if operation is Arithmetic.ADD:
        return Affine.shift_by(vector), axis
    if operation is Arithmetic.SUBTRACT:
        return (Affine.shift_by(-vector) if slot == 0 else Affine(-np.ones(channels), vector)), axis
    if operation is Arithmetic.MULTIPLY:
        return Affine.scale_by(vector), axis
    return no if not vector.all() else (Affine.scale_by(1 / vector), axis)


def _named(value: Value | None) -> str:
    return "" if value is None else f"'{value.name}'"
