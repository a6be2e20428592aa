"""Transposing: axis ``order[i]`` of the input is axis i of the output, and a map stays on its axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import (
    Moves,
    Rearrangement,
    Rule,
    axis_not_proven,
    follow_backward,
    follow_forward,
)
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "Transpose"]


@dataclass(frozen=True, slots=True)
class Transpose(Rearrangement):
    """Output axis i is input axis ``order[i]``."""

    order: tuple[int, ...]

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The same map along the axis that this one came from, or goes to."""
        if axis >= len(self.order):
            return None
        return affine, self.order[axis] if back else self.order.index(axis)


def multi_axis(
    moves: Moves, node: Node, output: Value, affine: Affine, axes: tuple[int, ...]
) -> Refusal | None:
    """The same map on the input, along the axes that these come from."""
    data, order = node.input(DATA), cast(Transpose, node.op).order
    if data is None or data.shape is None or output.shape is None or max(axes) >= len(order):
        return axis_not_proven(node)
    return moves.produce(data, affine, tuple(order[axis] for axis in axes), reader=node)


def from_onnx(call: OnnxCall) -> Op | None:
    """Transpose, by default of all axes into their reverse."""
    data, order = call.input(DATA), call.attributes.get("perm")
    rank = None if data is None else data.rank
    if order is None:
        return None if rank is None else Transpose(tuple(range(rank))[::-1])
    order = tuple(int(axis) for axis in order)
    return (
        Transpose(order) if rank in (None, len(order)) and sorted(order) == list(range(len(order))) else None
    )


def permute_from_aten(call: AtenCall) -> Mapped | None:
    """``permute``."""
    rank, order = call.rank(), call.given.get("dims")
    if not isinstance(order, list | tuple) or not all(type(axis) is int for axis in order):
        return None
    found = tuple(axis % len(order) for axis in order)
    fits = sorted(found) == list(range(len(order))) and rank in (None, len(order))
    return call.unary(Transpose(found)) if fits else None


def from_aten(call: AtenCall) -> Mapped | None:
    """``transpose`` of two axes, and ``t``."""
    rank = call.rank()
    kind = "axis" if "axis0" in call.given else "dim"  # swapaxes calls them so
    first, second = call.axis(f"{kind}0", rank, 0), call.axis(f"{kind}1", rank, 1)
    if rank is None or first is None or second is None or max(first, second) >= rank:
        return None
    order = list(range(rank))
    order[first], order[second] = second, first
    return call.unary(Transpose(tuple(order)))


def moved_from_aten(call: AtenCall) -> Mapped | None:
    """``movedim``: axes to other places, the rest in the order that they have."""
    given: list[Any] = [call.given.get(name) for name in ("source", "destination")]
    rank, (moved, places) = call.rank(), [list(x) if isinstance(x, list | tuple) else [x] for x in given]
    if rank is None or len(moved) != len(places) or not all(type(axis) is int for axis in (*moved, *places)):
        return None
    moved, places = [int(axis) % rank for axis in moved], [int(axis) % rank for axis in places]
    rest = iter(axis for axis in range(rank) if axis not in moved)
    order = tuple(moved[places.index(place)] if place in places else next(rest) for place in range(rank))
    return call.unary(Transpose(order))


def turned_from_aten(call: AtenCall) -> Mapped | None:
    """``mT``, the last two axes, and ``T``, all of them."""
    rank = call.rank()
    if rank is None or rank < 2:
        return None
    order = list(range(rank))
    order = order[::-1] if call.name == "numpy_T" else [*order[:-2], rank - 1, rank - 2]
    return call.unary(Transpose(tuple(order)))


def transposed_shape(call: AtenCall) -> Shape | None:
    """The sizes in the order that the reader finds."""
    read = {"permute": permute_from_aten, "movedim": moved_from_aten}.get(call.name, from_aten)
    found, shape = read(call), call.shape()
    return None if found is None or not shape else tuple(shape[i] for i in cast(Transpose, found.op).order)


OPERATOR = Operator(
    Transpose,
    Rule("transpose", Transpose, follow_backward, follow_forward, True, multi_axis),
    onnx={"Transpose": from_onnx},
    aten=(
        Aten(("permute",), permute_from_aten, ("self", "*dims"), shape=transposed_shape, fresh=False),
        Aten(
            ("transpose", "swapaxes", "swapdims", "t"),
            from_aten,
            ("self", "dim0", "dim1"),
            ("swapaxes", "swapdims"),
            shape=transposed_shape,
            fresh=False,
        ),
        Aten(
            ("movedim", "moveaxis"),
            moved_from_aten,
            ("self", "source", "destination"),
            ("moveaxis",),
            shape=transposed_shape,
            fresh=False,
            overloads=("intlist",),
        ),
        Aten(("mT", "numpy_T"), turned_from_aten),
    ),
)
