"""What rules that only pass maps on ask of a node's neighbours."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.operators.rule import Axes
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value
from support.rule_laws import Moves


def backward(
    at: Node, found: Affine, axis: Axes = 1, *, refused: Collection[int | str] = (), output: int = 0
) -> Moves | Refusal:
    moves, rule = Moves(refused), rule_for(at.op)
    assert rule is not None
    assert rule.through
    assert rule.backward is not None
    if isinstance(axis, int):
        stopped = rule.backward(moves, at, at.outputs[output], found, axis)
    else:
        assert rule.multi_axis is not None
        stopped = rule.multi_axis(moves, at, at.outputs[output], found, axis)
    return moves if stopped is None else stopped


def forward(
    at: Node, found: Affine, axis: int = 1, *, slot: int = 0, refused: Collection[int | str] = ()
) -> Moves | Refusal:
    moves, rule = Moves(refused), rule_for(at.op)
    assert rule is not None
    assert rule.forward is not None
    stopped = rule.forward(moves, at, slot, found, axis)
    return moves if stopped is None else stopped


def asked(answer: Moves | Refusal) -> list[tuple[Value, Affine, Axes]]:
    """What was asked of producers, or else of readers; no constant is touched."""
    assert isinstance(answer, Moves), answer
    assert not answer.constants
    assert not (answer.produced and answer.consumed)
    return answer.produced or list(answer.consumed)


def only(answer: Moves | Refusal) -> tuple[Value, Affine, Axes]:
    (found,) = asked(answer)
    return found


def same(one: Affine, other: Affine) -> bool:
    return np.array_equal(one.scale, other.scale) and np.array_equal(one.shift, other.shift)
