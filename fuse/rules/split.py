"""Splitting and slicing: forwards, each piece's readers take the piece of the map that belongs to it.

Backwards a map would have to be known for all pieces at once, which is asked of none of them.
"""

from __future__ import annotations

from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule
from convbn.fuse.view.dataflow import Node
from convbn.fuse.view.ops import Slice, Split

__all__ = ["RULES"]


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``split(s·x + t)`` is ``s₁·x₁ + t₁, s₂·x₂ + t₂``."""
    along = cast(Split, node.op).axis == axis
    start = 0
    for output in node.outputs:
        piece = affine
        if along:
            size = None if output.shape is None else output.shape[axis]
            if size is None:
                return Refusal(
                    Reason.AXIS_NOT_PROVEN, f"the sizes of the pieces of {node.label} are not known"
                )
            piece = Affine(affine.scale[start : start + size], affine.shift[start : start + size])
            start += size
        if (refusal := moves.consume(output, piece, axis)) is not None:
            return refusal
    if along and start != affine.channels:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the pieces of {node.label} do not add up")
    return None


def forward_slice(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``(s·x + t)[a:b]`` is ``s[a:b]·x[a:b] + t[a:b]``."""
    op = cast(Slice, node.op)
    if slot != 0:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} reads the map as a position")
    if op.axis != axis:
        return moves.consume(node.outputs[0], affine, axis)
    piece = Affine(affine.scale[op.start : op.stop], affine.shift[op.start : op.stop])
    return moves.consume(node.outputs[0], piece, axis)


RULES = (
    Rule("split", Split, None, forward, through=True),
    Rule("slice", Slice, None, forward_slice, through=True),
)
