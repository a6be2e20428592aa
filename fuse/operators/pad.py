"""Padding along other axes than the map's: copies of elements pass every map, zeros pass only a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, onto_data
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "Pad"]


@dataclass(frozen=True, slots=True)
class Pad(Labelled):
    """More (or fewer) elements at the ends of ``axes``: zeros, or copies of elements that are there."""

    axes: tuple[int, ...]
    zeros: bool


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·pad(x) + t = pad(s·x + t)``."""
    refusal = _stops(node, affine, axis)
    return refusal if refusal is not None else onto_data(moves, node, affine, axis)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``pad(s·x + t) = s·pad(x) + t``."""
    if slot != DATA:
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} pads with it")
    refusal = _stops(node, affine, axis)
    return refusal if refusal is not None else moves.consume(node.outputs[0], affine, axis)


def _stops(node: Node, affine: Affine, axis: int) -> Refusal | None:
    op = cast(Pad, node.op)
    if axis in op.axes:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} adds channels")
    if op.zeros and not affine.is_scale:
        return Refusal(
            Reason.SHIFT_INTO_PADDING, f"{node.label} puts zeros around its data, where the shift would lack"
        )
    return None


def from_onnx(call: OnnxCall) -> Op | None:
    """Pad by known sizes; of constants only zeros."""
    data, pads, filling = call.input(DATA), call.integers(1, "pads"), call.input(2)
    if data is None or not data.rank or pads is None:
        return None
    value = None if filling is None else filling.constant
    constant = call.attributes.get("mode", "constant") == "constant"
    filled = float(call.attributes.get("value", 0.0)) != 0 or (
        value is not None and bool(value.array().any())
    )
    if constant and (filled or (filling is not None and value is None)):
        return None
    axes: list[int] | None = list(range(data.rank))
    if call.input(3) is not None:
        axes = call.integers(3, "axes")
    if axes is None or len(pads) != 2 * len(axes):
        return None
    ends = list(zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True))
    padded = tuple(sorted(axis % data.rank for axis, *around in ends if any(around)))
    return Pad(call.operator, padded, zeros=constant and max(pads, default=0) > 0)


def from_aten(call: AtenCall) -> Mapped | None:
    """``pad`` in every mode, and the borders that are reflected or repeated."""
    rank, pads = call.rank(), call.given.get("pad", call.given.get("padding"))
    if rank is None or not isinstance(pads, list | tuple) or not all(type(size) is int for size in pads):
        return None
    border = call.name.startswith(("reflection", "replication"))
    constant = not border and call.given.get("mode", "constant") == "constant"
    if constant and call.given.get("value") not in (None, 0):
        return None
    # From the last axis on, two numbers each.
    around = [(rank - 1 - i // 2, pads[i : i + 2]) for i in range(0, len(pads), 2)]
    axes = tuple(sorted(axis for axis, ends in around if any(ends)))
    return call.unary(Pad("Pad", axes, zeros=constant and max(pads, default=0) > 0))


RULE = Rule("pad", Pad, backward, forward, through=True)

OPERATOR = Operator(
    Pad,
    RULE,
    onnx={"Pad": from_onnx},
    aten=(
        Aten(("pad", "constant_pad_nd"), from_aten, ("self", "pad", "mode", "value")),
        Aten(
            tuple(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
            from_aten,
        ),
    ),
)
