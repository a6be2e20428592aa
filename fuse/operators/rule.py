"""What a rule is: how an affine map passes into an operator or through it.

A map can move two ways. *Backward*: the node's output is to become the map of what it was. *Forward*: the
node's input was the map of some value and will be that value itself, and whatever follows must not notice.
A rule either takes the map into the node's constants, or passes it on to the node's inputs or readers
through :class:`Moves`. It never looks further than its own node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, DATA, WEIGHT, Op

__all__ = [
    "Axes",
    "Moves",
    "Pending",
    "Rearrangement",
    "Rule",
    "axis_not_proven",
    "constant_at",
    "follow_backward",
    "follow_forward",
    "not_positive",
    "onto_data",
    "parameters",
    "size_along",
    "wrong_axis",
    "wrong_channels",
]


@dataclass(slots=True, eq=False)
class Pending:
    """A constant whose numbers wait until it is known that the map can go this way at all.

    Attributes:
        shape: of the constant.
        compute: gives it, or why there is none.
    """

    shape: tuple[int, ...]
    compute: Callable[[], Constant | Refusal]


class Moves(Protocol):
    """What a rule may ask for; all of it is undone together if the fold fails in the end."""

    def constant(self, node: Node, slot: int) -> Constant | Refusal | None:
        """The constant at a slot as this fold has it so far."""
        ...

    def set(self, node: Node, slot: int, constant: Constant | Pending | Refusal) -> Refusal | None:
        """Give the node a constant; a refusal passes through."""
        ...

    def become(self, node: Node, op: Op) -> Refusal | None:
        """Make the node another operator over what it reads."""
        ...

    def changes(self, value: Value) -> None:
        """Note that a value will have other numbers, which nobody reads that does not know."""
        ...

    def produce(self, value: Value, affine: Affine, axis: Axes, *, reader: Node) -> Refusal | None:
        """Make ``value`` the map of what it was, for ``reader``; its other readers must not notice."""
        ...

    def produce_all(
        self, parts: Sequence[tuple[Value, Affine]], axis: int, *, reader: Node
    ) -> Refusal | None:
        """Make several values maps of what they were, for ``reader``; they may be parts of one value."""
        ...

    def consume(self, value: Value, affine: Affine, axis: int) -> Refusal | None:
        """``value`` will no longer have this map applied to it: let every reader apply it instead."""
        ...

    def unnoticed(self, value: Value, affine: Affine, axis: int) -> Refusal | None:
        """``value`` becomes the map of what it was: no reader may notice."""
        ...

    def first(self, *attempts: Callable[[], Refusal | None]) -> Refusal | None:
        """Try ways in turn and keep the first that works; the last refusal if none does."""
        ...


Axes = int | tuple[int, ...]
"""Where a map lies: along an axis, or along several at once, its numbers running over the last one first."""

Backward = Callable[[Moves, Node, Value, Affine, int], Refusal | None]
Forward = Callable[[Moves, Node, int, Affine, int], Refusal | None]
MultiAxis = Callable[[Moves, Node, Value, Affine, tuple[int, ...]], Refusal | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How an affine map meets an operator.

    Attributes:
        name: what ``--only``, ``--skip`` and reports build on: ``batchnorm-into-NAME``.
        operator: the class of operators it is for.
        backward: ``(moves, node, output, map, axis)``, or None where no map can go that way.
        forward: ``(moves, node, slot, map, axis)``, or None.
        through: whether it only passes maps on.
        multi_axis: backward, for a map that lies along several axes; None where none can pass.
    """

    name: str
    operator: type[Op]
    backward: Backward | None = None
    forward: Forward | None = None
    through: bool = False
    multi_axis: MultiAxis | None = None

    @property
    def full_name(self) -> str:
        """The rule's name in options and reports."""
        return f"batchnorm-{'through' if self.through else 'into'}-{self.name}"


def constant_at(node: Node, slot: int, what: str) -> Constant | Refusal | None:
    """The constant at ``slot``, None where the slot is empty, or why there is none."""
    value = node.input(slot)
    if value is None:
        return None
    if value.constant is None:
        return value.not_constant or Refusal(
            Reason.WEIGHT_NOT_CONSTANT,
            lambda: f"the {what} '{value.name}' of {node.label} is {_whence(value)}",
        )
    return value.constant


_LOOKED_AT = 100
"""Operators between constants and a weight, at most, for a sentence about it."""


_NOT_OF_INPUTS = ("if", "loop", "scan", "rand", "bernoulli", "multinomial", "dropout")
"""What its inputs do not say all of: bodies that capture, and chance."""


def _whence(value: Value) -> str:
    """Where a value that is no constant comes from."""
    if value.producer is None:
        return "an input of the model"
    waiting, seen, first = [value], set[int](), value.producer
    while waiting:
        producer = waiting.pop().producer
        kind = "" if producer is None else producer.op.describe().rpartition(".")[2].lower()
        if producer is None or kind.startswith(_NOT_OF_INPUTS) or not any(producer.inputs):
            return "computed while the model runs"
        flowing = [v for v in producer.inputs if v is not None and v.constant is None and id(v) not in seen]
        if len(seen) > _LOOKED_AT:
            return "computed while the model runs"
        if not flowing:
            first = producer
        seen |= {id(v) for v in flowing}
        waiting += flowing
    return (
        f"computed from constants alone, by operators of which {first.label} is not evaluated here; "
        "it would go if the result were stored"
    )


def parameters(
    moves: Moves, node: Node, slot: int = WEIGHT, bias: int = BIAS
) -> tuple[Constant, Constant | None] | Refusal:
    """Weight and bias of a linear layer, or the refusal where they are not constants."""
    weight = moves.constant(node, slot)
    if isinstance(weight, Refusal):
        return weight
    if weight is None:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{node.label} has no weight")
    shift = moves.constant(node, bias)
    return shift if isinstance(shift, Refusal) else (weight, shift)


def onto_data(moves: Moves, node: Node, affine: Affine, axis: int) -> Refusal | None:
    """Ask for the same map on the data, where the node passes it on as it is."""
    data = node.input(DATA)
    if data is None:
        return Refusal(Reason.PARAMETERS_MALFORMED, f"{node.label} reads nothing")
    return moves.produce(data, affine, axis, reader=node)


def not_positive(node: Node, affine: Affine) -> Refusal | None:
    """The refusal where some scale is not positive, for operators that let only positive ones through."""
    negative = int((affine.scale <= 0).sum())
    if not negative:
        return None
    return Refusal(
        Reason.NEGATIVE_SCALE,
        f"{node.label} lets only a positive scale through, and {negative} of {affine.channels} are not",
    )


def wrong_axis(node: Node, axis: int) -> Refusal | None:
    """The refusal where the map's axis is not, or not provably, the layer's output channel axis."""
    channel_axis = node.op.output_axis_of(node.outputs[0].rank)
    if channel_axis == axis:
        return None
    where = f"is {channel_axis}"
    if channel_axis is None:
        advice = "example inputs, --input-shape or stored shapes would settle it"
        where = f"cannot be known, because its rank is not ({advice})"
    return Refusal(
        Reason.AXIS_NOT_PROVEN,
        f"the BatchNorm normalises axis {axis}, and the output channel axis of {node.label} {where}",
    )


def wrong_channels(node: Node, channels: int, given: int, side: str = "output") -> Refusal:
    """The refusal where the map has another number of channels than the layer."""
    return Refusal(
        Reason.PARAMETERS_MALFORMED,
        f"{node.label} has {channels} {side} channels and the BatchNorm {given}",
    )


def size_along(value: Value | None, axis: int) -> int | None:
    """The size of a value along an axis; None where there is none or it is not known."""
    shape = () if value is None or value.shape is None else value.shape
    return shape[axis] if axis < len(shape) else None


def axis_not_proven(node: Node) -> Refusal:
    """The refusal where a map is not one along an axis on the other side of the node."""
    return Refusal(
        Reason.AXIS_NOT_PROVEN,
        f"the BatchNorm's channels are not, or not provably, one axis on both sides of {node.label}",
    )


@dataclass(frozen=True, slots=True)
class Rearrangement(Op):
    """What moves elements and leaves them as they are; its data is its first input."""

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """A map of ``source`` as the same map of ``target``, and its axis there; None where it is none.

        Args:
            source: the output if ``back``, else the data.
            target: the other one.
            affine: the map.
            axis: of ``source``.
            back: whether the map goes from the output to the data.
        """
        raise NotImplementedError


def follow_backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the data of a rearrangement."""
    data = node.input(DATA)
    found = (
        None if data is None else cast(Rearrangement, node.op).moved(output, data, affine, axis, back=True)
    )
    return (
        axis_not_proven(node) if data is None or found is None else moves.produce(data, *found, reader=node)
    )


def follow_forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the output of a rearrangement."""
    data, output = node.input(DATA), node.outputs[0]
    if data is None or slot != DATA:
        return axis_not_proven(node)
    found = cast(Rearrangement, node.op).moved(data, output, affine, axis, back=False)
    return axis_not_proven(node) if found is None else moves.consume(output, *found)
