"""The rule for what repeats its data (Expand, Tile, ``expand``, ``repeat``): the law there and back, and what stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from support.rule_laws import Moves, affine, backward, forward, node, reason

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.negation import Negation
from convbn.fuse.operators.repeat import Repeat
from convbn.fuse.view.dataflow import Node

Shape = Sequence[int | None] | None


def repeat(source: Shape, target: Shape) -> Node:
    return node(Repeat("Expand"), source, output=target)


def where(answer: object) -> tuple[object, int]:
    """Where the map went, and with how many channels."""
    assert isinstance(answer, Moves), answer
    ((_, found, axis),) = answer.produced or answer.consumed
    return axis, found.channels


@pytest.mark.parametrize(
    ("source", "axis", "target", "place", "channels"),
    [
        ((2, 3, 1), 1, (2, 3, 5), 1, 3),
        ((2, 3, 1), 1, (2, 12, 5), 1, 12),
        ((3, 4), 0, (2, 6, 4), 1, 6),
        ((3, 4), 1, (2, 6, 4), 2, 4),
        ((2, 1), 1, (2, 5), 1, 5),
    ],
)
def test_there_and_back(
    source: tuple[int, ...], axis: int, target: tuple[int, ...], place: int, channels: int
) -> None:
    """That the numbers are right is the law's part."""
    few, times = affine(source[axis]), channels // source[axis]
    assert where(forward(repeat(source, target), 0, few, axis)) == (place, channels)
    many = Affine(np.tile(few.scale, times), np.tile(few.shift, times))
    assert where(backward(repeat(source, target), many, place)) == (axis, source[axis])


@pytest.mark.parametrize("other", ["scale", "shift"])
def test_repeats_of_one_channel_must_agree(other: str) -> None:
    found = Affine(np.tile(affine(3).scale, 2), np.tile(affine(3).shift, 2))
    getattr(found, other)[-1] += 1
    assert reason(backward(repeat((2, 3), (2, 6)), found, 1)) == "axis-not-proven"


@pytest.mark.parametrize(
    ("source", "target"),
    [(None, (2, 3)), ((2, 3), None), ((2, 3), (2, None)), ((2, 3), (2, 4)), ((2, 3), (2, 0))],
)
def test_sizes_that_are_no_multiple_or_not_known_stay(source: Shape, target: Shape) -> None:
    assert reason(forward(repeat(source, target), 0, affine(3), 1)) == "axis-not-proven"


def test_shapes_that_lose_an_axis_contradict_each_other() -> None:
    assert reason(forward(repeat((4, 2, 3), (2, 4)), 0, affine(4), 0)) == "axis-not-proven"


def test_an_axis_that_only_the_output_has_stays() -> None:
    assert reason(backward(repeat((3, 4), (2, 3, 4)), affine(2), 0)) == "axis-not-proven"
    assert reason(backward(repeat((3, 4), (2, 3, 4)), affine(5), 1)) == "axis-not-proven"
    assert reason(backward(repeat((0, 4), (3, 4)), affine(3), 0)) == "axis-not-proven"


@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
def test_a_change_of_sign_changes_that_of_the_shift(kind: str) -> None:
    at = node(Negation(), (2, 3, 4), output=(2, 3, 4))
    assert where(forward(at, 0, affine(3, kind), 1)) == (1, 3)
    assert where(backward(at, affine(4, kind), 2)) == (2, 4)
