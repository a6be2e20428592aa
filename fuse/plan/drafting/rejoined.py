"""Parts of one value that are put together again: each asks the value for the same map, and it is given once.

``roll`` is two slices and a concatenation; a split by windows is undone behind what the windows were made for. A
map behind the concatenation is one of each part, and one of the value that all of them come from. To one part the
others are further readers of that value, which would have to take the inverse; here they are seen to want the map, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.operators.rule import Axes, Pending, constant_at
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.op import Op

__all__ = ["Wanted", "comes_along", "whole"]

_NO = Refusal(Reason.SEVERAL_READERS, "only looked at")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value that is to become a map of what it was.

    Attributes:
        value, affine, axis: what is wanted.
        reader: the operator that wants it.
    """

    value: Value
    affine: Affine
    axis: Axes
    reader: Node

    def is_same(self, affine: Affine, axis: Axes) -> bool:
        """Whether it is this very map."""
        same = np.array_equal(self.affine.scale, affine.scale) and np.array_equal(
            self.affine.shift, affine.shift
        )
        return same and self.axis == axis


Parts = Mapping[int, Wanted]
"""By the identity of their values."""


def whole(value: Value, affine: Affine, axis: Axes, wanted: Parts) -> Affine:
    """The map of ``value`` that gives all its parts what is wanted of them; ``affine`` where they disagree."""
    total = affine
    for node in {id(reader.node): reader.node for reader in value.readers}.values():
        for part in (wanted[id(output)] for output in node.outputs if id(output) in wanted):
            asked = _asked(part, node, wanted)
            if asked is None or asked.value is not value or asked.axis != axis:
                continue
            here, there = (_changes(found) for found in (total, asked.affine))
            differ = (total.scale != asked.affine.scale) | (total.shift != asked.affine.shift)
            if bool((here & there & differ).any()):
                return affine
            total = Affine(
                np.where(there, asked.affine.scale, total.scale),
                np.where(there, asked.affine.shift, total.shift),
            )
    return total


def comes_along(reader: Reader, affine: Affine, axis: Axes, wanted: Parts) -> list[Wanted] | None:
    """What a reader gives of data that takes this map, where that is wanted or unchanged; None where it is not."""
    node, rule, question = reader.node, rule_for(reader.node.op), _Question(wanted)
    if rule is None or rule.forward is None or not rule.through or not isinstance(axis, int):
        return None
    if rule.forward(question, node, reader.slot, affine, axis) is not None:
        return None
    found = list[Wanted]()
    for value, given, place in question.given:
        part = wanted.get(id(value))
        if part is not None and part.is_same(given, place):
            found.append(part)
        elif not given.is_identity:
            return None
    return found


def _changes(affine: Affine) -> NDArray[np.bool_]:
    changed: NDArray[np.bool_] = (affine.scale != 1) | (affine.shift != 0)
    return changed


def _asked(part: Wanted, node: Node, wanted: Parts) -> Wanted | None:
    """What the rule of the operator that gives a part asks of its data, if it asks for that alone."""
    rule, question = rule_for(node.op), _Question(wanted)
    if rule is None or rule.backward is None or not rule.through or not isinstance(part.axis, int):
        return None
    refusal = rule.backward(question, node, part.value, part.affine, part.axis)
    return None if refusal is not None or len(question.asked) != 1 else Wanted(*question.asked[0], node)


@dataclass(slots=True)
class _Question:
    """What a rule asks of its operator's data or says of its output, where it does nothing else."""

    wanted: Parts
    asked: list[tuple[Value, Affine, Axes]] = field(default_factory=list)
    given: list[tuple[Value, Affine, int]] = field(default_factory=list)

    def produce(self, value: Value, affine: Affine, axis: Axes, *, reader: Node) -> Refusal | None:
        self.asked.append((value, affine, axis))
        return None

    def consume(self, value: Value, affine: Affine, axis: int) -> Refusal | None:
        self.given.append((value, affine, axis))
        return _NO if self.asked else None

    def unnoticed(self, value: Value, affine: Affine, axis: int) -> Refusal | None:
        part = self.wanted.get(id(value))
        return None if part is not None and part.is_same(affine, axis) else _NO

    def produce_all(
        self, parts: Sequence[tuple[Value, Affine]], axis: int, *, reader: Node
    ) -> Refusal | None:
        return _NO

    def first(self, *attempts: Callable[[], Refusal | None]) -> Refusal | None:
        return _NO

    def constant(self, node: Node, slot: int) -> Constant | Refusal | None:
        return constant_at(node, slot, "constant")

    def set(self, node: Node, slot: int, constant: Constant | Pending | Refusal) -> Refusal | None:
        return _NO

    def become(self, node: Node, op: Op) -> Refusal | None:
        return _NO

    def changes(self, value: Value) -> None:
        return None
