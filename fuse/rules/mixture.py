"""Weighted means, as attention makes them: ``Σ_j p[i,j]·(s·v[j] + t) = s·Σ_j p[i,j]·v[j] + t`` with ``Σ_j p[i,j] = 1``.

The weights are a softmax over what is summed, so their sum is 1 whatever they were computed from. The map must
work along the axis that is not summed and not mixed.
"""

from __future__ import annotations

from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import Mixture

__all__ = ["RULE"]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the values."""
    op = cast(Mixture, node.op)
    values = node.input(op.values)
    if values is None or values.rank is None or values.rank < 2 or output.rank is None:
        return _mixed(node)
    if axis != output.rank + op.axis:
        return _mixed(node)
    return moves.produce(values, affine, values.rank + op.axis, reader=node)


def scattered(
    moves: Moves, node: Node, output: Value, affine: Affine, axes: tuple[int, ...]
) -> Refusal | None:
    """The same map on the values; along axes that count the products, too."""
    op = cast(Mixture, node.op)
    values = node.input(op.values)
    if (
        values is None
        or values.shape is None
        or output.shape is None
        or len(values.shape) != len(output.shape)
    ):
        return _mixed(node)
    rank = len(output.shape)
    for axis in axes:
        same = values.shape[axis] is not None and values.shape[axis] == output.shape[axis]
        if axis != rank + op.axis and not (same and axis < rank - 2):
            return _mixed(node)
    return moves.produce(values, affine, axes, reader=node)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the output."""
    op, data, output = cast(Mixture, node.op), node.input(slot), node.outputs[0]
    if slot != op.values or data is None or data.rank is None or data.rank < 2 or output.rank is None:
        return _mixed(node)
    if axis != data.rank + op.axis:
        return _mixed(node)
    return moves.consume(output, affine, output.rank + op.axis)


def _mixed(node: Node) -> Refusal:
    return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} mixes what lies along the map's axis")


RULE = Rule("mixture", Mixture, backward, forward, through=True, scattered=scattered)
