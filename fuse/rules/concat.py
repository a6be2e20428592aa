"""Concatenation: along the map's axis each input takes its own part of the map, along another one all of it."""

from __future__ import annotations

from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import Concat

__all__ = ["RULE"]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``concat(x₁, x₂)`` under ``(s, t)`` is ``concat(s₁x₁ + t₁, s₂x₂ + t₂)``."""
    inputs = [value for value in node.inputs if value is not None]
    if len({id(value) for value in inputs}) != len(inputs):
        return Refusal(Reason.SEVERAL_READERS, f"{node.label} reads one value twice")
    sizes = _sizes(node, axis)
    if sizes is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the sizes of what {node.label} joins are not known")
    along = cast(Concat, node.op).axis == axis
    start = 0
    for value, size in zip(inputs, sizes, strict=True):
        piece = affine
        if along:
            piece = Affine(affine.scale[start : start + size], affine.shift[start : start + size])
            start += size
        if (refusal := moves.produce(value, piece, axis, reader=node)) is not None:
            return refusal
    return None


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The readers apply the map to their part, and nothing to the others."""
    sizes = _sizes(node, axis)
    if sizes is None or cast(Concat, node.op).axis != axis or sizes[slot] != affine.channels:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} joins along another axis or unknown sizes")
    before, after = sum(sizes[:slot]), sum(sizes[slot + 1 :])
    scale = np.concatenate([np.ones(before), affine.scale, np.ones(after)])
    shift = np.concatenate([np.zeros(before), affine.shift, np.zeros(after)])
    return moves.consume(node.outputs[0], Affine(scale, shift), axis)


def _sizes(node: Node, axis: int) -> list[int] | None:
    sizes: list[int] = []
    for value in node.inputs:
        size = None if value is None or value.shape is None or axis >= len(value.shape) else value.shape[axis]
        if size is None:
            return None
        sizes.append(size)
    return sizes


RULE = Rule("concat", Concat, backward, forward, through=True)
