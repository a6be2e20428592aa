"""What one attempt would set: constants and operators, noted until the attempt has succeeded as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.rule import Pending, constant_at
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import Bypass, Edit, Replace, SetConstant
from convbn.fuse.view.op import Op
from convbn.fuse.view.view import View, vanishes

__all__ = ["Changes", "UnfitError"]


class UnfitError(Exception):
    """Numbers that were waited with turn out to be none that can be stored."""


class Changes:
    """The edits of one attempt.

    Args:
        view: not changed.
        mover: the node whose map moves, and which will be gone.
        eager, together: see :class:`convbn.fuse.plan.draft.Draft`.
    """

    def __init__(self, view: View, mover: Node, *, eager: bool, together: bool) -> None:
        self._view = view
        self._mover = mover
        self._eager, self._together = eager, together
        self._set: dict[tuple[int, int], tuple[Node, Constant | Pending]] = {}
        self._ops: dict[int, tuple[Node, Op]] = {}
        self._spared: dict[int, Node] = {}

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The constants to set, in the order in which they were first touched, and the BatchNorms that go as well."""
        constants = (
            SetConstant(node, slot, self._computed(node, slot))
            for (_, slot), (node, _) in self._set.items()
            if id(node) not in self._ops
        )
        others = (Replace(node, op, tuple(self._operands(node))) for node, op in self._ops.values())
        return (*constants, *others, *map(Bypass, self._spared.values()))

    def _operands(self, node: Node) -> Iterator[Value | Constant | None]:
        """What a node that becomes another operator reads."""
        slots = [slot for key, slot in self._set if key == id(node)]
        for slot in range(max([len(node.inputs), *(slot + 1 for slot in slots)])):
            yield self._computed(node, slot) if slot in slots else node.input(slot)

    def _computed(self, node: Node, slot: int) -> Constant:
        constant = self._set[id(node), slot][1]
        if isinstance(constant, Pending):
            made = constant.compute()
            if isinstance(made, Refusal):
                raise UnfitError
            self._set[id(node), slot] = (node, made)
            return made
        return constant

    @property
    def into(self) -> tuple[str, ...]:
        """The nodes whose constants change."""
        return tuple(dict.fromkeys(node.name for node, _ in self._set.values()))

    @property
    def adds(self) -> bool:
        """Whether the model gains an addition for a constant that a layer has no place for."""
        return any(
            node.gains(slot) for (_, slot), (node, _) in self._set.items() if id(node) not in self._ops
        )

    def constant(self, node: Node, slot: int) -> Constant | Refusal | None:
        """The constant at a slot as this attempt has it so far."""
        if (id(node), slot) in self._set:
            return self._computed(node, slot)
        return constant_at(node, slot, _SLOTS.get(slot, "constant"))

    def set(self, node: Node, slot: int, constant: Constant | Pending | Refusal) -> Refusal | None:
        """Note a constant, if the frontend can set it."""
        if isinstance(constant, Pending) and self._eager:
            constant = constant.compute()
        if isinstance(constant, Refusal):
            return constant
        if (refusal := self._gains(node, slot)) is not None:
            return refusal
        known = Constant(constant.shape, _unread) if isinstance(constant, Pending) else constant
        edit: Edit = SetConstant(node, slot, known)
        refusal = self._view.check(edit, together=self._together)
        if refusal is None:
            self._set[id(node), slot] = (node, constant)
        return refusal

    def become(self, node: Node, op: Op) -> Refusal | None:
        """Note another operator for a node, if the frontend can make it that."""
        refusal = self._view.check(Replace(node, op, ()))
        if refusal is None:
            self._ops[id(node)] = node, op
        return refusal

    def _gains(self, node: Node, slot: int) -> Refusal | None:
        """Why the model may not gain the operator that this constant would be read by."""
        if not node.gains(slot):
            return None
        gained = {key for key, (other, _) in self._set.items() if other.gains(key[1])}
        # An operator for a BatchNorm: no more of them than before, and a sum is not moved to become another one.
        going = (self._mover, *self._spared.values())
        goes = sum(map(vanishes, going)) if isinstance(self._mover.op, BatchNorm) else 0
        if len(gained | {(id(node), slot)}) <= goes * self._view.additions:
            return None
        return Refusal(
            Reason.NO_BIAS, f"{node.label} has no bias, and an addition for it costs what the BatchNorm does"
        )


_SLOTS = {1: "weight", 2: "bias"}


def _unread() -> NDArray[Any]:
    raise AssertionError("whether an edit can be made depends on the shape of its constant alone")
