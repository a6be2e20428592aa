"""From a dataflow view to a plan: which BatchNorm goes where, and why the others stay.

Every affine map is offered the ways of :mod:`convbn.fuse.plan.ways`, the plain ones first. Linear branches are merged
before a map is taken apart, because a merge takes in a BatchNorm beside a convolution without touching its
neighbours. Each success may open a way for a map that had none, so it goes on until nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import cast

from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.elementwise import Elementwise
from convbn.fuse.operators.registry import OF_CONSTANTS
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan import ways
from convbn.fuse.plan.attempts import Attempts, Footprint
from convbn.fuse.plan.drafting.changes import UnfitError
from convbn.fuse.plan.evaluation import evaluate
from convbn.fuse.plan.kernel_patterns import keep_whole
from convbn.fuse.plan.maps import affine_of, data_slot
from convbn.fuse.plan.merging.beside import merge_beside
from convbn.fuse.plan.merging.chains import merge_chains
from convbn.fuse.plan.merging.merger import merge_branches
from convbn.fuse.plan.merging.pieces import merge_pieces
from convbn.fuse.plan.plan import Folded, Kept, Merged, Plan
from convbn.fuse.plan.together import calls_of_one, together
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.edits import Bypass, SetConstant
from convbn.fuse.view.view import View

__all__ = ["make_plan"]


def make_plan(view: View, options: FuseOptions) -> Plan:
    """Plan every fold that is exact; the view is left as the model will be.

    Args:
        view: the dataflow of the model; it is changed.
        options: which rules may be used.
    """
    if view.pure:
        keep_whole(view)
    plan = Plan()
    attempts, joint = Attempts(), Attempts()
    all_of_them = [node.name for node in view.batchnorms()]
    while (
        (view.pure and _round_of_calls(view, plan, options, joint))
        or _round(view, plan, options, attempts, thorough=False)
        or (view.pure and _merge(view, plan, options))
        or (view.pure and _round(view, plan, options, attempts, thorough=True))
    ):
        pass
    for node in view.batchnorms():
        refusal = attempts.refusals[node.name]
        plan.kept.append(Kept(node.name, refusal.reason, refusal.detail))
    # What only computed a weight is gone once the weight is stored.
    settled = {folded.name for folded in plan.folded} | {kept.name for kept in plan.kept}
    plan.folded.extend(Folded(name, (), OF_CONSTANTS) for name in all_of_them if name not in settled)
    return plan


def _round(view: View, plan: Plan, options: FuseOptions, attempts: Attempts, *, thorough: bool) -> bool:
    """Try every map once; whether any went."""
    before, gone = len(plan.edits), set[int]()
    for node in (
        node for node in _maps(view) if id(node) not in gone and not attempts.in_vain(node, thorough=thorough)
    ):
        attempt = ways.Attempt(view, node, options, _beside(node))
        outcome = _fold(attempt, thorough=thorough)
        if isinstance(outcome, Refusal):
            attempts.note(view, node, outcome, attempt.seen, thorough=thorough)
            continue
        if not thorough and view.pure and _joins_batchnorm(node, outcome):
            continue  # as a sum of its own it may yet take the BatchNorm's shift
        gone |= {id(e.node) for e in outcome.edits if isinstance(e, Bypass)}
        _make(view, plan, node, outcome)
    return len(plan.edits) > before


def _round_of_calls(view: View, plan: Plan, options: FuseOptions, attempts: Attempts) -> bool:
    """Try the calls of one layer as one; whether any went."""
    before = len(plan.edits)
    for calls in calls_of_one(view):
        if any(node not in view or attempts.in_vain(node, thorough=True) for node in calls):
            continue
        tried = [ways.Attempt(view, node, options, _beside(node)) for node in calls]
        outcome = together(tried, partial(_fold, thorough=True))
        if isinstance(outcome, Refusal):
            for attempt in tried:
                attempts.note(view, attempt.node, outcome, attempt.seen, thorough=True)
            continue
        for node, fold in zip(calls, outcome, strict=True):
            _make(view, plan, node, fold)
    return len(plan.edits) > before


def _make(view: View, plan: Plan, node: Node, fold: ways.Fold) -> None:
    """Take a fold into the plan, and show the view as it then is."""
    others = [e.node for e in fold.edits if isinstance(e, Bypass) and e.node is not node]
    plan.folded.extend(Folded(other.name, fold.into, fold.rule) for other in others)
    batchnorm = isinstance(node.op, BatchNorm)  # asked now: an edit may make it an addition
    for edit in fold.edits:
        view.apply(edit)
    plan.edits.extend(fold.edits)
    plan.moved.extend(fold.moved)
    if batchnorm:
        plan.folded.append(Folded(node.name, fold.into, fold.rule))
    else:
        # A sum with 0 or a product with 1 goes without going anywhere.
        plan.merged.append(Merged((node.name,), (*fold.into, node.name)[0], fold.rule))


def _joins_batchnorm(node: Node, fold: ways.Fold) -> bool:
    """Whether a sum or product becomes part of a BatchNorm."""
    into = (edit.node for edit in fold.edits if isinstance(edit, SetConstant))
    return not isinstance(node.op, BatchNorm) and any(isinstance(other.op, BatchNorm) for other in into)


def _merge(view: View, plan: Plan, options: FuseOptions) -> bool:
    """Merge linear branches; whether there were any."""
    before = len(plan.edits)
    if view.replaceable:
        merges = chain(
            merge_branches(view, options, affine_of), merge_pieces(view, options), merge_chains(view, options)
        )
    else:
        merges = chain(merge_beside(view, options, affine_of))
    for merge in merges:
        plan.edits.extend(merge.edits)
        touched = (merge.into, *merge.gone, *(edit.node for edit in merge.edits))
        plan.merges.append(tuple(dict.fromkeys(node.name for node in touched)))
        maps = [node for node in merge.gone if isinstance(node.op, BatchNorm)]
        plan.folded.extend(Folded(node.name, (merge.into.name,), merge.rule) for node in maps)
        names = tuple(node.name for node in merge.gone if node not in maps)
        if names:
            plan.merged.append(Merged(names, merge.into.name, merge.rule))
    return len(plan.edits) > before


def _maps(view: View) -> Iterator[Node]:
    """What is an affine map: BatchNorms, and in graphs also sums and products with a constant."""
    kinds = (BatchNorm, Elementwise) if view.pure else (BatchNorm,)
    # Constants first: what is made of them may be a weight that a later map goes into. Then BatchNorms: the sums and
    # products beside them may be what takes them.
    found = [node for node in view.nodes if isinstance(node.op, kinds)]
    return iter(
        sorted(found, key=lambda node: (node.outputs[0].constant is None, not isinstance(node.op, BatchNorm)))
    )


def _beside(node: Node) -> Footprint:
    """The node, and what gives its inputs."""
    sources = (value.producer for value in node.inputs if value is not None)
    return {id(found): found for found in (node, *sources) if found is not None}


def _fold(attempt: ways.Attempt, *, thorough: bool) -> ways.Fold | Refusal:
    """The edits that make a map disappear, or why there are none."""
    try:
        return _tried(attempt, thorough=thorough)
    except UnfitError:
        return _tried(replace(attempt, eager=True), thorough=thorough)
    except MemoryError:
        detail = (
            "its map has more channels on the way than fit into memory, by the sizes that the model states"
        )
        return Refusal(Reason.AXIS_NOT_PROVEN, detail)


def _tried(attempt: ways.Attempt, *, thorough: bool) -> ways.Fold | Refusal:
    view, node, options = attempt.view, attempt.node, attempt.options
    if isinstance(node.op, BatchNorm) and node.outputs[0].constant is not None:
        return evaluate(view, node, options)
    found = affine_of(node)
    if isinstance(found, Refusal):
        return found
    affine, axis = found
    source = cast(Value, node.input(data_slot(node)))  # no frontend gives a map without data
    seen_by_others = source.producer is None or source.observed or len(source.readers) > 1
    if not view.pure and affine.is_identity and seen_by_others:
        # It needs no layer that takes it, so no rule looks at who else reads what it reads.
        return Refusal(
            Reason.SEVERAL_READERS,
            f"it changes nothing, but what is written in place behind it must not be written to '{source.name}'",
        )
    outcome = ways.backward(attempt, source, affine, axis)
    if isinstance(outcome, ways.Fold) or not view.pure or outcome.reason is Reason.SKIPPED:
        return outcome
    onward = ways.forward(attempt, affine, axis)
    if isinstance(onward, ways.Fold):
        return onward
    if thorough and isinstance(node.op, BatchNorm):
        for way in (ways.apart, ways.compensated, ways.to_add):
            last = way(attempt, source, affine, axis)
            if last is not None:
                return last
    return Refusal(outcome.reason, lambda: f"backward, {outcome.detail}; forward, {onward.detail}")
