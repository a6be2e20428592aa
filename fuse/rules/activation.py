"""ReLU and its family: ``f(s·x) = s·f(x)`` for s > 0, so a positive scale passes, in either direction.

A shift does not, nor does a negative scale: ``ReLU(−x)`` is no multiple of ``ReLU(x)``.
"""

from __future__ import annotations

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.rule import Moves, Rule, not_positive, onto_data
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import Activation

__all__ = ["RULE"]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·f(x) = f(s·x)``."""
    refusal = _passes(node, affine)
    return refusal if refusal is not None else onto_data(moves, node, affine, axis)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``f(s·x) = s·f(x)``."""
    refusal = (
        _passes(node, affine) if slot == 0 else Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} bends it")
    )
    return refusal if refusal is not None else moves.consume(node.outputs[0], affine, axis)


def _passes(node: Node, affine: Affine) -> Refusal | None:
    if not affine.is_scale:
        return Refusal(
            Reason.PRODUCER_NOT_LINEAR, f"{node.label} lets a positive scale through, and no shift"
        )
    return not_positive(node, affine)


RULE = Rule("activation", Activation, backward, forward, through=True)
