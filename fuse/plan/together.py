"""Calls of one layer and its BatchNorm that go as one: siamese encoders, shared heads, loops that are unrolled.

Each call is a BatchNorm of its own in the dataflow, over the same parameters. Where all of them go, each into the
call of the layer beside it, the parameters take the map once: every call that reads one of them is among those that
want it changed, and all of them want the same numbers. Where others keep the old numbers, copies are for whoever can
make them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from convbn.fuse.plan.ways import Attempt, Fold
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node
from convbn.fuse.view.edits import Bypass, Edit, SetConstant
from convbn.fuse.view.op import WEIGHT
from convbn.fuse.view.view import View

__all__ = ["calls_of_one", "together"]


def calls_of_one(view: View) -> list[list[Node]]:
    """The BatchNorms that have their parameters in common with others, in groups."""
    found: dict[object, list[Node]] = {}
    for node in view.batchnorms():
        parameters = [(value.name, id(value.constant)) for value in node.inputs[1:] if value is not None]
        found.setdefault((node.op, *parameters), []).append(node)
    return [nodes for nodes in found.values() if len(nodes) > 1]


def together(attempts: Sequence[Attempt], fold: Callable[[Attempt], Fold | Refusal]) -> list[Fold] | Refusal:
    """The folds of all calls, which change each parameter to the same constant, or why there are none.

    Args:
        attempts: one for each call.
        fold: tries one of them.
    """
    folds: list[Fold] = []
    for attempt in attempts:
        outcome = fold(replace(attempt, together=True))
        if isinstance(outcome, Refusal):
            return outcome
        folds.append(outcome)
    nodes = [{id(edit.node) for edit in one.edits} for one in folds]
    if len(set[int]().union(*nodes)) < sum(map(len, nodes)):
        return _refused("one of its calls goes into another one")
    agreed = _agreed(folds)
    if agreed is None:
        return _refused("its calls would need different numbers in one layer")
    left = _left_out(attempts[0].view, [edit for one in agreed for edit in one.edits])
    if left is not None:
        return _refused(f"{left.label} reads the same parameters and would have to keep them")
    return agreed


def _refused(detail: str) -> Refusal:
    return Refusal(Reason.CALLED_SEVERAL_TIMES, detail)


def _stored_at(node: Node, slot: int) -> str | None:
    """What stands at a slot, by its name, and what would stand there if it is empty."""
    value = node.input(slot)
    if value is not None:
        return value.name
    weight = node.input(WEIGHT)
    return node.ties.get(slot) or (None if weight is None else f"{weight.name}, slot {slot}")


def _agreed(folds: Sequence[Fold]) -> list[Fold] | None:
    """The folds with one constant for each parameter, in the layer's first call; None where they differ in one."""
    constants: dict[str | None, Constant] = {}
    first: dict[str, str] = {}
    calls: dict[str, str] = {}
    agreed: list[Fold] = []
    for fold in folds:
        edits: list[Edit] = []
        for edit in fold.edits:
            name = _stored_at(edit.node, edit.slot) if isinstance(edit, SetConstant) else None
            if isinstance(edit, SetConstant) and name is not None:
                calls.setdefault(edit.node.name, first.setdefault(name, edit.node.name))
                constant = constants.setdefault(name, edit.constant)
                if constant is not edit.constant and not _same(constant, edit.constant):
                    return None
                edits.append(replace(edit, constant=constant))
            else:
                edits.append(edit)
        into = dict.fromkeys(calls.get(layer, layer) for layer in fold.into)
        agreed.append(replace(fold, into=tuple(into), edits=tuple(edits)))
    return agreed


def _same(a: Constant, b: Constant) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.exact(), b.exact())


def _left_out(view: View, edits: Sequence[Edit]) -> Node | None:
    """Who reads a parameter that only changes for all, and is not among those for whom it changes."""
    covered, names = set[tuple[int, int]](), set[str]()
    for edit in edits:
        if not isinstance(edit, SetConstant | Bypass):
            continue
        own = range(1, len(edit.node.inputs)) if isinstance(edit, Bypass) else (edit.slot,)
        covered.update((id(edit.node), slot) for slot in own)
        if view.check(edit) is not None:
            names.update(name for slot in own if (name := _stored_at(edit.node, slot)) is not None)
    for node in view.nodes if names else ():
        for slot in {*range(len(node.inputs)), *node.ties}:
            stays = (id(node), slot) not in covered and node.op.sees_numbers(slot)
            if stays and _stored_at(node, slot) in names:
                return node
    return None
