"""Gathering: along another axis than the map's any positions, known or not, have the same map; along it, each its own.

Backwards along the map's axis, the whole takes the map at the positions that are read and nothing at the others; a
position that is read twice must have the same map both times. A table that is read from (an embedding) takes it itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.broadcast import along
from convbn.fuse.algebra.rounding import round_scaled, round_sum
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Pending, Rule, axis_not_proven
from convbn.fuse.operators.split import into_part, picked
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "Gather"]

_INDICES = 1


@dataclass(frozen=True, slots=True)
class Gather(Op):
    """``x[…, i, …]`` with the indices i in the place of ``axis``; a ``single`` one takes that axis away."""

    axis: int
    single: bool = False


def _added(node: Node) -> int | None:
    """How many axes stand in the place of the one that is read from."""
    indices = node.input(_INDICES)
    return 0 if cast(Gather, node.op).single else None if indices is None else indices.rank


def _positions(node: Node) -> list[int] | None:
    """Those that are read, if they are constants in a row of one axis."""
    indices = node.input(_INDICES)
    known = None if indices is None or indices.rank != 1 or cast(Gather, node.op).single else indices.constant
    return None if known is None else [int(place) for place in known.array()]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·x[i] + t`` is ``(s'·x + t')[i]`` with ``s'[i] = s``."""
    data, place, added = node.input(DATA), cast(Gather, node.op).axis, _added(node)
    if data is None or added is None:
        return axis_not_proven(node)
    if not place <= axis < place + added:
        at = axis if axis < place else axis - added + 1
        table = moves.constant(node, DATA)
        if isinstance(table, Constant):
            return _into_table(moves, node, table, affine, at)
        return moves.produce(data, affine, at, reader=node)
    positions = _positions(node)
    return axis_not_proven(node) if positions is None else into_part(moves, node, affine, axis, positions)


def _into_table(moves: Moves, node: Node, table: Constant, affine: Affine, axis: int) -> Refusal | None:
    """``W'[…, c] = s[c]·W[…, c] + t[c]``."""
    rank = len(table.shape)
    if axis >= rank or table.shape[axis] != affine.channels:
        return axis_not_proven(node)
    if affine.is_scale:
        scale = along(affine.scale, axis, rank)
        return moves.set(node, DATA, Pending(table.shape, lambda: round_scaled(table, scale, axes=(axis,))))

    def mapped() -> Constant | Refusal:
        total = along(affine.scale, axis, rank) * table.exact() + along(affine.shift, axis, rank)
        return round_sum(total, table.dtype, axis, "table")

    return moves.set(node, DATA, Pending(table.shape, mapped))


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``(s·x + t)[i]`` is ``s[i]·x[i] + t[i]``."""
    place, added = cast(Gather, node.op).axis, _added(node)
    if slot != DATA or added is None:
        return axis_not_proven(node)
    if axis != place:
        return moves.consume(node.outputs[0], affine, axis if axis < place else axis + added - 1)
    positions = _positions(node)
    return axis_not_proven(node) if positions is None else picked(moves, node, affine, axis, positions)


def from_onnx(call: OnnxCall) -> Op | None:
    """Gather; one index without an axis takes the axis away."""
    axis = call.axis(call.input(DATA), 0)
    return None if axis is None else Gather(axis)


def from_aten(call: AtenCall) -> Mapped | None:
    """``index_select``, ``select`` and ``embedding``."""
    if call.name == "embedding":
        return call.reads(Gather(0), "weight", "indices")
    axis = call.axis("dim", call.rank(), 0)
    if axis is None:
        return None
    if call.name == "select":
        return call.unary(Gather(axis, single=True))
    # Indices without an axis of their own are one index along it.
    return call.reads(Gather(axis), "self", "index") if call.rank("index") == 1 else None


OPERATOR = Operator(
    Gather,
    Rule("gather", Gather, backward, forward, through=True),
    onnx={"Gather": from_onnx},
    aten=(
        Aten(("select",), from_aten, ("self", "dim", "index"), fresh=False),
        Aten(("index_select",), from_aten, ("self", "dim", "index"), keeps_rank=True),
        Aten(("embedding",), from_aten),
    ),
)
