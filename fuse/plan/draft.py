"""One attempt to move an affine map: every edit it would need, or the refusal that ends it.

The draft answers the rules (:class:`convbn.fuse.operators.rule.Moves`). Nothing reaches the view until the attempt
has succeeded as a whole; what a failed way set is taken back before the next way is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.operators.rule import Axes, Rule
from convbn.fuse.operators.zeros import is_zero
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.attempts import Footprint
from convbn.fuse.plan.drafting.changes import Changes
from convbn.fuse.plan.drafting.rejoined import Wanted, comes_along, whole
from convbn.fuse.plan.maps import affine_of
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Reader, Value
from convbn.fuse.view.edits import Bypass
from convbn.fuse.view.view import View

__all__ = ["Draft"]

_STEPS = 400
"""Operators one map may pass; a longer way is refused rather than searched."""

_DEPTH = 60
"""Operators that may wait for each other's answer; each takes up to six frames of Python's stack of 1,000."""


class Draft(Changes):
    """The edits of one attempt.

    Args:
        view: what the rules see; not changed.
        options: which rules may be used.
        mover: the node whose map moves. It will be gone, so nothing may pass through it or be left to it.
        footprint: takes up every node that the attempt looks at.
        whole: other readers of what moves may be given the inverse of a map that both scales and shifts.
        eager: compute numbers at once. Without, they wait until somebody reads them: most attempts fail for
            what the view alone shows. They may then raise ``UnfitError``, where an eager attempt could
            have gone another way.
        together: see :meth:`convbn.fuse.view.view.View.check`.
    """

    def __init__(
        self,
        view: View,
        options: FuseOptions,
        mover: Node,
        footprint: Footprint,
        *,
        eager: bool = True,
        whole: bool = False,
        together: bool = False,
    ) -> None:
        super().__init__(view, mover, eager=eager, together=together)
        self._options = options
        self._footprint = footprint
        self._scope = mover.scope
        self._whole = whole
        self._moving: dict[int, Value] = {}
        self._wanted: dict[int, Wanted] = {}
        self._along: dict[int, Value] = {}
        self._steps = self._depth = 0
        self.rule: str | None = None

    @property
    def moved(self) -> tuple[str, ...]:
        """The values that become another function of the inputs."""
        return tuple(name for value in self._moving.values() for name in (value.name, *value.stands_for))

    def changes(self, value: Value) -> None:
        """Note that a value will have other numbers."""
        self._moving[id(value)] = value

    def first(self, *attempts: Callable[[], Refusal | None]) -> Refusal | None:
        """Try ways in turn; each starts from what stood before."""
        kept, moving, along = dict(self._set), dict(self._moving), dict(self._along)
        spared, ops = dict(self._spared), dict(self._ops)
        refusal: Refusal | None = None
        for attempt in attempts:
            refusal = attempt()
            if refusal is None:
                return None
            self._set, self._moving, self._spared = dict(kept), dict(moving), dict(spared)
            self._ops, self._along = dict(ops), dict(along)
        return refusal

    def produce_all(
        self, parts: Sequence[tuple[Value, Affine]], axis: int, *, reader: Node
    ) -> Refusal | None:
        """Make every part the map of what it was; what comes along with another one is not asked again."""
        before = self._wanted
        self._wanted = before | {id(value): Wanted(value, affine, axis, reader) for value, affine in parts}
        try:
            for value, affine in parts:
                if id(value) in self._along:
                    continue
                if (refusal := self.produce(value, affine, axis, reader=reader)) is not None:
                    return refusal
        finally:
            self._wanted = before
        return None

    def _with(self, part: Wanted) -> Refusal | None:
        """Take in a part that becomes what is wanted, since what it is made of does."""
        value, producer = part.value, part.value.producer
        if id(value) in self._moving:
            return None
        self._along[id(value)] = value
        if value.observed or producer is None:
            return Refusal(Reason.OBSERVED, f"'{value.name}' is also {value.observed}")
        refusal = self._enter(value)
        if refusal is not None:
            return refusal
        return self._compensate(producer, value, part.affine, part.axis, part.reader)

    def produce(self, value: Value, affine: Affine, axis: Axes, *, reader: Node) -> Refusal | None:
        """Make ``value`` the map of what it was; readers other than ``reader`` are compensated."""
        if affine.is_identity:
            return None
        self._look_at(value)
        producer = value.producer
        if affine.is_scale and is_zero(value):
            return None
        if value.constant is not None or producer is None:
            return Refusal(Reason.NO_PRODUCER, f"'{value.name}' is an input or a constant of the model")
        if value.observed:
            return Refusal(Reason.OBSERVED, f"the output of {producer.label} is also {value.observed}")
        if sum(r.node is reader for r in _affected(value)) > 1:
            return Refusal(
                Reason.SEVERAL_READERS, f"{reader.label} reads the output of {producer.label} twice"
            )
        if producer.scope != self._scope:
            return Refusal(
                Reason.OTHER_SCOPE,
                f"{producer.label} stands outside the {self._scope or 'main graph'} of the BatchNorm",
            )
        if (refusal := self._enter(value)) is not None:
            return refusal
        joint = whole(value, affine, axis, self._wanted) if self._wanted else affine
        if joint is not affine:
            own = next(r for r in value.readers if r.node is reader)
            parts = comes_along(own, joint, axis, self._wanted)
            affine = affine if parts is None else joint
            for part in parts or ():
                if (refusal := self._with(part)) is not None:
                    return refusal
        self._depth += 1
        try:
            refusal = self._compensate(producer, value, affine, axis, reader)
            return refusal if refusal is not None else self._backward(producer, value, affine, axis)
        finally:
            self._depth -= 1

    def _backward(self, producer: Node, value: Value, affine: Affine, axis: Axes) -> Refusal | None:
        if producer is self._mover or id(producer) in self._spared:
            return self._comes_back()
        rule = rule_for(producer.op)
        if rule is None or rule.backward is None or (rule.through and not self._view.pure):
            return Refusal(
                Reason.PRODUCER_NOT_LINEAR,
                f"its input comes from {producer.label}, which takes no scale and shift behind it",
            )
        if (refusal := self._allowed(rule)) is not None:
            return refusal
        if isinstance(axis, int):
            return rule.backward(self, producer, value, affine, axis)
        if rule.multi_axis is None:
            return Refusal(
                Reason.AXIS_NOT_PROVEN, f"{producer.label} takes no map along several axes at once"
            )
        return rule.multi_axis(self, producer, value, affine, axis)

    def consume(self, value: Value, affine: Affine, axis: int) -> Refusal | None:
        """Let every reader of ``value`` apply the map instead."""
        if affine.is_identity:
            return None
        self._look_at(value)
        if value.observed:
            return Refusal(Reason.OBSERVED, f"'{value.name}' is also {value.observed}")
        if (refusal := self._enter(value)) is not None:
            return refusal
        readers = _affected(value)
        if len({id(r.node) for r in readers}) != len(readers):
            return Refusal(Reason.SEVERAL_READERS, f"'{value.name}' is read twice by one operator")
        self._depth += 1
        try:
            for reader in readers:
                if (refusal := self._forward(reader.node, reader.slot, affine, axis)) is not None:
                    return refusal
        finally:
            self._depth -= 1
        return None

    def unnoticed(self, value: Value, affine: Affine, axis: int) -> Refusal | None:
        """``value`` becomes the map of what it was, and nobody may notice."""
        part = self._wanted.get(id(value))
        if part is not None and part.is_same(affine, axis):
            return self._with(part)
        self._look_at(value)
        if value.observed:
            return Refusal(Reason.OBSERVED, f"'{value.name}' is also {value.observed}")
        refusal = self._enter(value)
        if refusal is not None or value.producer is None:
            return refusal
        return self._compensate(value.producer, value, affine, axis, None)

    def _same(self, reader: Reader, affine: Affine, axis: Axes) -> bool:
        """Whether a reader is a BatchNorm that computes this very map: where the value has it, that one goes, too."""
        node = reader.node
        if not isinstance(node.op, BatchNorm) or not self._view.pure or node is self._mover or reader.slot:
            return False
        touched = any(id(node) == id(set_on) for set_on, _ in self._set.values())
        if touched or node.scope != self._scope or self._view.check(Bypass(node)) is not None:
            return False
        found = affine_of(node)
        return (
            not isinstance(found, Refusal)
            and found[1] == axis
            and np.array_equal(found[0].scale, affine.scale)
            and np.array_equal(found[0].shift, affine.shift)
        )

    def _compensate(
        self, producer: Node, value: Value, affine: Affine, axis: Axes, reader: Node | None
    ) -> Refusal | None:
        others = [r for r in _affected(value) if r.node is not reader]
        same = [r for r in others if self._same(r, affine, axis)]
        self._spared |= {id(r.node): r.node for r in same}
        others = [r for r in others if r not in same]
        for other in list(others):
            parts = (
                None if other.node.scope != self._scope else comes_along(other, affine, axis, self._wanted)
            )
            if parts is not None:
                others.remove(other)
                for part in parts:
                    if (refusal := self._with(part)) is not None:
                        return refusal
        if not others:
            return None
        # Compensating costs digits where a large shift is put on a value and taken off again. A BatchNorm's
        # statistics bound that for a shift alone (the ways see to it); signs and a scale alone have no such cost.
        bounded = isinstance(self._mover.op, BatchNorm) and (
            self._whole or affine.is_scale or affine.keeps_size
        )
        inverse = affine.inverse() if self._view.pure and bounded else None
        if inverse is None or not isinstance(axis, int):
            return Refusal(Reason.SEVERAL_READERS, partial(_also_read, producer, others))
        for other in others:
            refusal = self._forward(other.node, other.slot, inverse, axis)
            if refusal is not None:
                return Refusal(Reason.SEVERAL_READERS, partial(_also_read, producer, others, refusal))
        return None

    def _forward(self, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
        if node.scope != self._scope:
            return Refusal(Reason.OTHER_SCOPE, f"{node.label} stands in another graph than the BatchNorm")
        if node is self._mover or id(node) in self._spared:
            return self._comes_back()
        rule = rule_for(node.op)
        if rule is None or rule.forward is None:
            return Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} cannot take a scale and a shift")
        if (refusal := self._allowed(rule)) is not None:
            return refusal
        return rule.forward(self, node, slot, affine, axis)

    def _allowed(self, rule: Rule) -> Refusal | None:
        if not self._options.allows(rule.full_name):
            return Refusal(Reason.SKIPPED, f"the rule {rule.full_name} is switched off")
        self.rule = self.rule or rule.full_name
        return None

    def _comes_back(self) -> Refusal:
        return Refusal(Reason.SEVERAL_READERS, f"every way for it comes back to {self._mover.label} itself")

    def _look_at(self, value: Value) -> None:
        for node in (value.producer, *(reader.node for reader in value.readers)):
            if node is not None:
                self._footprint[id(node)] = node

    def _enter(self, value: Value) -> Refusal | None:
        """A value is moved once an attempt: a way that comes back to it has no end."""
        self._steps += 1
        if self._steps > _STEPS or self._depth > _DEPTH:
            far = f"{_DEPTH} operators in a row" if self._depth > _DEPTH else f"{_STEPS} operators"
            return Refusal(Reason.TOO_FAR, f"the map would have to pass more than {far}")
        if id(value) in self._moving:
            return Refusal(Reason.SEVERAL_READERS, f"every way for it comes back to '{value.name}'")
        self._moving[id(value)] = value
        return None


def _affected(value: Value) -> list[Reader]:
    """Who reads more of a value than its shape and its type, which no map changes."""
    return [reader for reader in value.readers if reader.sees_numbers]


def _also_read(producer: Node, others: Sequence[Reader], refusal: Refusal | None = None) -> str:
    names = sorted({reader.node.label for reader in others})
    listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    text = f"the output of {producer.label} is also read by {listed}, which must not see it changed"
    return text if refusal is None else f"{text}: {refusal.detail}"
