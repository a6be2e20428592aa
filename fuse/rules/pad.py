"""Padding along other axes than the map's: copies of elements pass every map, zeros pass only a scale."""

from __future__ import annotations

from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule, onto_data
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import DATA, Pad

__all__ = ["RULE"]


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


RULE = Rule("pad", Pad, backward, forward, through=True)
