"""Rows that are put or added into others by index, ``y = x``, then ``y[i] = u`` or ``y[i] += u``, as in graphs.

Where the updates take the place of what was there, x and u both take the map. Where they are added a row may have any
number of them, so only a scale passes, ``s·(x + Σ u) = s·x + Σ s·u``; into a maximum or minimum only a positive one.
A map lies along an axis that the indices say nothing of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, axis_not_proven, not_positive, size_along
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "Scatter"]

_UPDATES = 2


@dataclass(frozen=True, slots=True)
class Scatter(Labelled):
    """Slots: data, indices, updates.

    Attributes:
        axes: those that the indices run over.
        reduction: "none", "add", "max" or "min".
    """

    axes: tuple[int, ...]
    reduction: str


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The same map on data and updates."""
    data, updates = node.input(DATA), node.input(_UPDATES)
    refusal = _stopped(node, affine, axis)
    if refusal is not None or data is None or updates is None:
        return refusal or axis_not_proven(node)
    refusal = moves.produce(updates, affine, axis, reader=node)
    return refusal if refusal is not None else moves.produce(data, affine, axis, reader=node)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """A scale on to the readers, its inverse into the other operand."""
    other = node.input(DATA if slot == _UPDATES else _UPDATES)
    refusal = _stopped(node, affine, axis)
    if refusal is not None or other is None or slot not in (DATA, _UPDATES):
        return refusal or axis_not_proven(node)
    inverse = affine.inverse()
    if inverse is None:
        return Refusal(Reason.ILL_CONDITIONED, f"a scale of 0 cannot be taken out of {node.label}")
    refusal = moves.produce(other, inverse, axis, reader=node)
    return refusal if refusal is not None else moves.consume(node.outputs[0], affine, axis)


def _stopped(node: Node, affine: Affine, axis: int) -> Refusal | None:
    op, data, updates = cast(Scatter, node.op), node.input(DATA), node.input(_UPDATES)
    if axis in op.axes:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the indices of {node.label} run over the BatchNorm's axis")
    sizes = {size_along(value, axis) for value in (data, updates)}
    if data is updates or sizes != {affine.channels}:
        return axis_not_proven(node)
    if op.reduction == "add" and not affine.is_scale:
        return Refusal(
            Reason.PRODUCER_NOT_LINEAR,
            f"{node.label} adds up as many rows as there are, and a shift with each",
        )
    return not_positive(node, affine) if op.reduction in ("max", "min") else None


def elements_from_onnx(call: OnnxCall) -> Op | None:
    """ScatterElements, and Scatter as it was called before."""
    axis = call.axis(call.input(DATA), 0)
    reduction = str(call.attributes.get("reduction", "none"))
    return None if axis is None or reduction == "mul" else Scatter(call.operator, (axis,), reduction)


def nd_from_onnx(call: OnnxCall) -> Op | None:
    """ScatterND, whose indices have as many columns as axes they run over."""
    indices, reduction = call.input(1), str(call.attributes.get("reduction", "none"))
    data, updates = call.input(DATA), call.input(_UPDATES)
    known = indices is not None and indices.shape and data is not None and updates is not None
    count = indices.shape[-1] if known and indices is not None and indices.shape else None
    if count is None or data is None or updates is None or updates.rank != data.rank or reduction == "mul":
        return None  # of another rank, the axes of the updates are not those of the data
    return Scatter(call.operator, tuple(range(count)), reduction)


_ATEN = {
    "scatter_add": ("add", "src"),
    "scatter": ("none", "src"),
    "index_add": ("add", "source"),
    "index_copy": ("none", "source"),
    "scatter_reduce": (None, "src"),
}
_REDUCTIONS = {"sum": "add", "amax": "max", "amin": "min"}


def from_aten(call: AtenCall) -> Mapped | None:
    """``scatter_add``, ``index_add`` and the like, of a tensor."""
    given, axis = call.given, call.axis("dim", call.rank())
    kind, source = _ATEN[call.name]
    if kind is None:
        kind = _REDUCTIONS.get(str(given.get("reduce"))) if given.get("include_self", True) else None
    if axis is None or kind is None or given.get("alpha", 1) != 1 or call.tensor(source) is None:
        return None
    return call.reads(Scatter(call.name, (axis,), kind), "self", "index", source)


RULE = Rule("scatter", Scatter, backward, forward, through=True)

OPERATOR = Operator(
    Scatter,
    RULE,
    onnx={"ScatterElements": elements_from_onnx, "Scatter": elements_from_onnx, "ScatterND": nd_from_onnx},
    aten=(Aten(tuple(_ATEN), from_aten, overloads=("src", "two")),),
)
