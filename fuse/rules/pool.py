"""Pooling. A mean with weights that sum to 1 lets every map through; a maximum those with a positive scale.

An average that counts zeros around the data has weights that sum to less than 1 at the borders, and lets only
a scale through. A maximum pads with −∞, which no map disturbs.
"""

from __future__ import annotations

from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule, not_positive, onto_data
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import Pool

__all__ = ["RULE"]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·pool(x) + t = pool(s·x + t)``."""
    refusal = _passes(node, affine, axis)
    return refusal if refusal is not None else onto_data(moves, node, affine, axis)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``pool(s·x + t) = s·pool(x) + t``."""
    refusal = _passes(node, affine, axis)
    return refusal if refusal is not None else moves.consume(node.outputs[0], affine, axis)


def _passes(node: Node, affine: Affine, axis: int) -> Refusal | None:
    op = cast(Pool, node.op)
    if axis != 1:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} pools along axis {axis}")
    if op.average:
        if op.counts_padding and not affine.is_scale:
            return Refusal(Reason.SHIFT_INTO_PADDING, f"{node.label} counts zeros around its data")
        return None
    return not_positive(node, affine)


RULE = Rule("pool", Pool, backward, forward, through=True)
