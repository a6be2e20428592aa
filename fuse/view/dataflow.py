"""Constants, values and nodes: the only thing about a model that a rule may look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.refusal import Refusal
from convbn.fuse.view.op import Op

__all__ = ["Constant", "Node", "Reader", "Value", "digest"]

Array = NDArray[Any]

_STRIDE = 32
"""Constants that are computed one within another, each by a few frames of Python's stack of 1,000."""


def digest(array: Array) -> bytes:
    """What only arrays of the same bytes have."""
    return blake2b(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()


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
        sources: the constants whose numbers ``load`` and ``exact`` ask for.
        key: what says which numbers they are: constants of equal keys are equal. Asked for when they are written.
    """

    __slots__ = (
        *("_deep", "_dtype", "_exact", "_held", "_load", "_sources", "_steps", "_wide", "_write"),
        *("_key", "cloneable", "magnitudes", "product", "shape", "work"),
    )

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
        sources: Sequence[Constant] = (),
        key: Callable[[], Hashable] | None = None,
    ) -> None:
        self._key = key
        self.shape = tuple(shape)
        self._sources = tuple(sources)
        # Each source is asked from within, so a chain of hundreds would not fit Python's stack: numbers in between,
        # _STRIDE steps apart, are computed first and held for as long as it takes.
        self._steps, self._deep = 0, False
        for source in self._sources:
            self._steps = max(self._steps, 1 + source._steps % _STRIDE)
            self._deep |= source._deep or source._steps == _STRIDE
        self._held: Array | None = None
        self._wide: NDArray[np.float64] | None = None
        self._write = write
        self.work = work
        # Bounds of max|exact| over all but some axes, by the shape it is seen in and those axes: numbers never
        # change, and a weight that several rules look at is read once for it.
        self.magnitudes: dict[
            tuple[tuple[int, ...], tuple[int, ...]], tuple[NDArray[np.float64], NDArray[np.float64]]
        ] = {}
        # Of a product: what is multiplied, the shape that it is seen in, and by what.
        self.product: tuple[Constant, tuple[int, ...], NDArray[np.float64]] | None = None
        self.cloneable = cloneable
        self._load = load
        self._exact = exact
        self._dtype = dtype

    @classmethod
    def of(cls, array: Array) -> Constant:
        """A constant that is already in memory."""
        return cls(array.shape, lambda: array, dtype=array.dtype, key=lambda: digest(array))

    def array(self) -> Array:
        """The numbers, in the dtype they are stored in. Not to be written to."""
        if self._held is not None and self._exact is None:
            return self._held
        return self._load() if not self._nested else self._by_way_of_sources(self._load)

    def write(self, target: Array) -> None:
        """Put the numbers into an array of this shape and dtype."""
        if self._write is None or not target.flags.c_contiguous:
            target[...] = self._load()
        elif self._deep:
            target[...] = self.array()
        else:
            self._write(target)

    def exact(self) -> NDArray[np.float64]:
        """The numbers in float64, before any rounding of ours. Not to be written to."""
        if self._exact is None:
            return self.array().astype(np.float64) if self._wide is None else self._wide
        if self._held is not None:
            return self._held
        return self._exact() if not self._nested else self._by_way_of_sources(self._exact)

    @property
    def _nested(self) -> bool:
        """Whether it is made of constants that are computed far below, or may be asked for several times."""
        return self._deep or bool(self.work)

    def _by_way_of_sources(self, compute: Callable[[], Array]) -> Array:
        """What ``compute`` gives, with the numbers in between held so that it need go neither far nor twice."""
        held: list[Constant] = []
        order, uses = self._below()
        try:
            for constant in order[:-1]:
                several = uses[id(constant)] > 1
                if constant._steps == _STRIDE or several:
                    held.append(constant)
                    constant._held = constant._load() if constant._exact is None else constant._exact()
                    if several and constant._exact is None and constant.dtype.kind == "f":
                        constant._wide = constant._held.astype(np.float64)
            return compute()
        finally:
            for constant in held:
                constant._held = constant._wide = None

    def _below(self) -> tuple[list[Constant], Counter[int]]:
        """The constants that it is computed from and that are not held, sources first; how many ask each of them."""
        order: list[Constant] = []
        uses, seen = Counter[int](), set[int]()
        waiting: list[tuple[Constant, bool]] = [(self, False)]
        while waiting:
            constant, ready = waiting.pop()
            if ready:
                order.append(constant)
            elif id(constant) not in seen and constant._held is None:
                seen.add(id(constant))
                sources = constant._sources if constant._nested else ()
                uses.update(map(id, sources))
                waiting += [(constant, True), *((source, False) for source in sources)]
        return order, uses

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the numbers are stored in."""
        if self._dtype is None:
            self._dtype = self.array().dtype
        return self._dtype

    @property
    def key(self) -> Hashable:
        """What only constants of the same numbers have."""
        return id(self) if self._key is None else (self.shape, self.dtype.name, self._key())

    @property
    def folded(self) -> bool:
        """Whether something was folded into it, so that ``exact`` knows more than ``array``."""
        return self._exact is not None


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """One use of a value: the node that reads it, and at which input slot."""

    node: Node
    slot: int

    @property
    def sees_numbers(self) -> bool:
        """Whether a map on the value makes a difference to the node."""
        return self.node.op.sees_numbers(self.slot)


@dataclass(slots=True, eq=False)
class Value:
    """A tensor that flows through the model.

    Attributes:
        name: the framework's name for it.
        shape: dimensions, ``None`` for one that is not known; ``None`` altogether if the rank is not.
        names: a name for a dimension that is not known, where it has one: dimensions of one name are equal.
        constant: its numbers, if they are the same in every run.
        not_constant: why a value that looks like a parameter must not count as one.
        observed: who else can see it beside its readers ("the graph's output"), if anyone.
        dtype: what its elements are, where the model states it.
        renamed: what the edited model calls it, if not by its name: a value takes over the name of one that
            was read in its place.
        replaces: the constant that an edit put it in the place of; with ``alone`` nobody else read that.
        gave_way_to: the value that is read in its place since its node went.
        stands_for: names of the values that it is read in the place of.
        handle: the frontend's own object, which nobody else looks into.
        touched: the view's clock when an edit last touched a node that gives or reads it.
    """

    name: str
    shape: tuple[int | None, ...] | None = None
    producer: Node | None = None
    readers: list[Reader] = field(default_factory=list)
    constant: Constant | None = None
    not_constant: Refusal | None = None
    observed: str | None = None
    dtype: np.dtype[Any] | None = None
    renamed: str | None = None
    replaces: Value | None = None
    alone: bool = False
    gave_way_to: Value | None = None
    stands_for: list[str] = field(default_factory=list)
    handle: Any = None
    touched: int = 0
    names: tuple[str | None, ...] = ()

    @property
    def rank(self) -> int | None:
        """Number of dimensions, if known."""
        return None if self.shape is None else len(self.shape)

    @property
    def dimensions(self) -> tuple[int | str | None, ...]:
        """Each dimension, or its name where it is not known; none where the rank is not."""
        shape = self.shape or ()
        named = self.names if len(self.names) == len(shape) else (None,) * len(shape)
        return tuple(name if size is None else size for size, name in zip(shape, named, strict=True))


@dataclass(slots=True, eq=False)
class Node:
    """One call of an operator.

    Attributes:
        name: unique in the model; what reports call it.
        inputs: by slot; ``None`` where an optional input is absent.
        scope: the graph it stands in ("" for the main one); an edit never crosses scopes.
        locks: edits that the frontend cannot make here, by what they would change: ``"bypass"`` or
            a slot number.
        ties: by slot, what the model calls the tensor there, or the one that would be there; other nodes' slots of
            that name change with it.
        adds: empty slots for which the model would gain an operator, such as an addition for the bias of a product.
        handle: the frontend's own object, which nobody else looks into.
        touched: the view's clock when an edit last touched it.
    """

    name: str
    op: Op
    inputs: list[Value | None]
    outputs: list[Value]
    scope: str = ""
    locks: dict[str | int, Refusal] = field(default_factory=dict)
    ties: dict[int, str] = field(default_factory=dict)
    adds: frozenset[int] = frozenset()
    handle: Any = None
    touched: int = 0

    def input(self, slot: int) -> Value | None:
        """The value at a slot, or None where the slot is absent or left empty."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def gains(self, slot: int) -> bool:
        """Whether the model would gain an operator for a constant at this slot."""
        return slot in self.adds and self.input(slot) is None

    @property
    def changed(self) -> int:
        """The view's clock when an edit last touched it or one that shares a value with it."""
        last = self.touched
        for value in self.inputs:
            if value is not None and value.touched > last:
                last = value.touched
        for value in self.outputs:
            last = max(last, value.touched)
        return last

    @property
    def label(self) -> str:
        """Operator and name, for sentences."""
        return f"{self.op.describe()} '{self.name}'"
