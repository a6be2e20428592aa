"""Values and nodes: the only thing about a model that a rule may look at.

A frontend builds a :class:`View` once. Rules read it and propose edits; :meth:`View.apply` brings the
view up to date with the edits that were accepted, so that the next rule sees the model as it will be.
Neither changes the model behind it: that is the frontend's part, from the plan's list of edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.edits import Bypass, Edit, Evaluate, Replace, SetConstant
from convbn.fuse.view.ops import BatchNorm, Op

__all__ = ["Constant", "Node", "Reader", "Value", "View"]

Array = NDArray[Any]


class Constant:
    """A tensor whose numbers are known; they are read when asked for, not before.

    Args:
        shape: its dimensions.
        load: returns the array; called each time, so a large tensor is never held twice.
        cloneable: whether a reader can be given a changed copy while other readers keep the original
            (an ONNX initializer can; a parameter that PyTorch modules share cannot).
        exact: returns what ``load`` has rounded, in float64. A constant that is folded into again is
            computed from that, so that however many maps it takes in, it is rounded once.
        work: elements that are computed each time the numbers are asked for; 0 if they are stored.
        write: puts what ``load`` returns into an array of its shape and dtype, without a second copy.
    """

    __slots__ = ("_dtype", "_exact", "_load", "_write", "cloneable", "magnitudes", "shape", "work")

    def __init__(
        self,
        shape: Sequence[int],
        load: Callable[[], Array],
        *,
        cloneable: bool = True,
        exact: Callable[[], NDArray[np.float64]] | None = None,
        dtype: np.dtype[Any] | None = None,
        work: int = 0,
        write: Callable[[Array], None] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self._write = write
        self.work = work
        # Bounds of max|exact| over all but some axes, by the shape it is seen in and those axes: numbers never
        # change, and a weight that several rules look at is read once for it.
        self.magnitudes: dict[
            tuple[tuple[int, ...], tuple[int, ...]], tuple[NDArray[np.float64], NDArray[np.float64]]
        ] = {}
        self.cloneable = cloneable
        self._load = load
        self._exact = exact
        self._dtype = dtype

    @classmethod
    def of(cls, array: Array) -> Constant:
        """A constant that is already in memory."""
        return cls(array.shape, lambda: array, dtype=array.dtype)

    def array(self) -> Array:
        """The numbers, in the dtype they are stored in. Not to be written to."""
        return self._load()

    def write(self, target: Array) -> None:
        """Put the numbers into an array of this shape and dtype."""
        if self._write is None or not target.flags.c_contiguous:
            target[...] = self._load()
        else:
            self._write(target)

    def exact(self) -> NDArray[np.float64]:
        """The numbers in float64, before any rounding of ours."""
        return self.array().astype(np.float64) if self._exact is None else self._exact()

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the numbers are stored in."""
        if self._dtype is None:
            self._dtype = self.array().dtype
        return self._dtype

    @property
    def folded(self) -> bool:
        """Whether something was folded into it, so that ``exact`` knows more than ``array``."""
        return self._exact is not None


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """One use of a value: the node that reads it, and at which input slot."""

    node: Node
    slot: int


@dataclass(slots=True, eq=False)
class Value:
    """A tensor that flows through the model.

    Attributes:
        name: the framework's name for it.
        shape: dimensions, ``None`` for one that is not known; ``None`` altogether if the rank is not.
        constant: its numbers, if they are the same in every run.
        not_constant: why a value that looks like a parameter must not count as one.
        observed: who else can see it beside its readers ("the graph's output"), if anyone.
    """

    name: str
    shape: tuple[int | None, ...] | None = None
    producer: Node | None = None
    readers: list[Reader] = field(default_factory=list)
    constant: Constant | None = None
    not_constant: Refusal | None = None
    observed: str | None = None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, if known."""
        return None if self.shape is None else len(self.shape)


@dataclass(slots=True, eq=False)
class Node:
    """One call of an operator.

    Attributes:
        name: unique in the model; what reports call it.
        inputs: by slot; ``None`` where an optional input is absent.
        scope: the graph it stands in ("" for the main one); an edit never crosses scopes.
        locks: edits that the frontend cannot make here, by what they would change: ``"bypass"`` or
            a slot number.
        handle: the frontend's own object, which nobody else looks into.
        changed: the view's clock when an edit last touched it or a value that it reads or gives.
    """

    name: str
    op: Op
    inputs: list[Value | None]
    outputs: list[Value]
    scope: str = ""
    locks: dict[str | int, Refusal] = field(default_factory=dict)
    handle: Any = None
    changed: int = 0

    def input(self, slot: int) -> Value | None:
        """The value at a slot, or None where the slot is absent or left empty."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    @property
    def label(self) -> str:
        """Operator and name, for sentences."""
        return f"{self.op.describe()} '{self.name}'"


class View:
    """The dataflow of one model: its nodes in an order in which they can run.

    Args:
        nodes: in running order.
        pure: what the nodes say is all there is to know: a node that writes to its inputs is shown as one
            that gives new values, and whoever else could see a value stands at ``observed``. Then maps may
            move in every direction.
        replaceable: nodes may change their operator. True of graphs; a PyTorch module's code stays, and only
            takes other parameters of the same shapes and bypasses.

    Attributes:
        clock: how many edits were applied so far.
    """

    def __init__(self, nodes: Sequence[Node], *, pure: bool = False, replaceable: bool = True) -> None:
        self.nodes = list(nodes)
        self.pure = pure
        self.replaceable = replaceable
        self.clock = 0

    def batchnorms(self) -> Iterator[Node]:
        """The BatchNorm nodes, in running order."""
        return (node for node in list(self.nodes) if isinstance(node.op, BatchNorm))

    def check(self, edit: Edit) -> Refusal | None:
        """Whether the model behind the view can be edited so; the refusal if it cannot."""
        if isinstance(edit, Bypass | Evaluate):
            return edit.node.locks.get("bypass")
        if isinstance(edit, Replace):
            if self.pure and self.replaceable:
                return edit.node.locks.get("bypass")
            return Refusal(
                Reason.NOT_A_MODULE, f"{edit.node.label} cannot become another operator in a module"
            )
        lock = edit.node.locks.get(edit.slot)
        if lock is not None:
            return lock
        value = edit.node.input(edit.slot)
        if value is None or value.constant is None:
            return None
        if not self.replaceable and value.constant.shape != edit.constant.shape:
            return Refusal(
                Reason.NOT_A_MODULE,
                f"'{value.name}' of {edit.node.label} would need the shape {list(edit.constant.shape)}",
            )
        if value.constant.cloneable or len(value.readers) == 1:
            return None
        others = ", ".join(sorted({r.node.label for r in value.readers if r.node is not edit.node}))
        return Refusal(
            Reason.PARAMETER_SHARED,
            f"'{value.name}' of {edit.node.label} is also used by {others or 'another call of it'}",
        )

    def apply(self, edit: Edit) -> None:
        """Make the view show the model as it is after ``edit``."""
        self.clock += 1
        self._touch(edit.node)
        if isinstance(edit, SetConstant):
            self._set_constant(edit.node, edit.slot, edit.constant)
        elif isinstance(edit, Replace):
            self._replace(edit)
        elif isinstance(edit, Evaluate):
            self._evaluate(edit)
        else:
            self._bypass(edit.node, edit.slot)
        self._touch(edit.node)

    def _touch(self, node: Node) -> None:
        """Mark a node, what gives its inputs, and what reads those or its outputs."""
        node.changed = self.clock
        for value in node.inputs:
            if value is not None:
                self._touch_around(value)
        for value in node.outputs:
            self._touch_around(value)

    def _touch_around(self, value: Value) -> None:
        if value.producer is not None:
            value.producer.changed = self.clock
        for reader in value.readers:
            reader.node.changed = self.clock

    def _set_constant(self, node: Node, slot: int, constant: Constant) -> None:
        while len(node.inputs) <= slot:
            node.inputs.append(None)
        old = node.inputs[slot]
        if old is not None:
            old.readers = [r for r in old.readers if (r.node, r.slot) != (node, slot)]
        name = f"{node.name}.{slot}" if old is None else old.name
        new = Value(name, constant.shape, constant=constant)
        new.readers.append(Reader(node, slot))
        node.inputs[slot] = new
        if old is not None:
            self._drop_if_unread(old)

    def _replace(self, edit: Replace) -> None:
        node = edit.node
        for value in {id(v): v for v in node.inputs if v is not None}.values():
            value.readers = [r for r in value.readers if r.node is not node]
        node.op = edit.op
        node.inputs = []
        for slot, operand in enumerate(edit.operands):
            if isinstance(operand, Value):
                node.inputs.append(operand)
                operand.readers.append(Reader(node, slot))
            else:
                node.inputs.append(None)
                if operand is not None:
                    self._set_constant(node, slot, operand)

    def _bypass(self, node: Node, slot: int) -> None:
        source, output = node.inputs[slot], node.outputs[0]
        if source is None:  # a BatchNorm without data is refused by the frontends
            raise ValueError(f"{node.label} has no input to be bypassed to")
        for value in {id(v): v for v in node.inputs if v is not None}.values():
            value.readers = [r for r in value.readers if r.node is not node]
        for reader in output.readers:
            reader.node.inputs[reader.slot] = source
        source.readers.extend(output.readers)
        source.observed = source.observed or output.observed
        self.nodes.remove(node)
        for value in {id(v): v for v in node.inputs if v is not None and v is not source}.values():
            self._drop_if_unread(value)

    def _evaluate(self, edit: Evaluate) -> None:
        node, output = edit.node, edit.node.outputs[0]
        operands = {id(value): value for value in node.inputs if value is not None}.values()
        for value in operands:
            value.readers = [r for r in value.readers if r.node is not node]
        output.constant, output.producer = edit.constant, None
        self.nodes.remove(node)
        for value in operands:
            self._drop_if_unread(value)

    def _drop_if_unread(self, value: Value) -> None:
        """Remove the nodes that only computed ``value``, as a frontend does when nobody reads it any more."""
        waiting = [value]
        gone: set[int] = set()
        while waiting:
            producer = waiting.pop().producer
            if producer is None or id(producer) in gone:
                continue
            if any(output.readers or output.observed for output in producer.outputs):
                continue
            gone.add(id(producer))
            self._touch(producer)
            self.nodes.remove(producer)
            for operand in producer.inputs:
                if operand is not None:
                    operand.readers = [r for r in operand.readers if r.node is not producer]
                    waiting.append(operand)
