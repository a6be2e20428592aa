"""The rule for concatenation: each input takes its part, and nothing where the parts are not known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from support.rule_laws import Moves, affine, backward, forward, node, reason, refusal

from convbn.fuse.operators.concat import Concat
from convbn.fuse.view.dataflow import Value

PIECES = [(2, 1, 3), (2, 3, 3), (2, 2, 3)]


def test_every_input_takes_its_part() -> None:
    moves = backward(node(Concat(1), *PIECES, output=(2, 6, 3)), affine(6), 1)
    assert isinstance(moves, Moves)
    assert [found.channels for _, found, _ in moves.produced] == [1, 3, 2]


def test_along_another_axis_every_input_takes_all_of_it() -> None:
    moves = backward(node(Concat(1), *PIECES, output=(2, 6, 3)), affine(3), 2)
    assert isinstance(moves, Moves)
    assert [(found.channels, axis) for _, found, axis in moves.produced] == [(3, 2)] * 3


@pytest.mark.parametrize(
    ("stacked", "axis", "of_input"), [(0, 2, 1), (0, 1, 0), (1, 2, 1), (1, 0, 0), (3, 1, 1), (2, 3, 2)]
)
def test_stacked_each_input_takes_all_of_it_along_its_own_axis(
    stacked: int, axis: int, of_input: int
) -> None:
    shape = (2, 3, 4)
    output = (*shape[:stacked], 2, *shape[stacked:])
    moves = backward(node(Concat(stacked, True), shape, shape, output=output), affine(output[axis]), axis)
    assert isinstance(moves, Moves)
    assert [place for _, _, place in moves.produced] == [of_input] * 2


@pytest.mark.parametrize("refused", ["v0", "v1", "v2"])
def test_an_input_that_cannot_take_it_ends_it(refused: str) -> None:
    built = node(Concat(1), *PIECES, output=(2, 6, 3))
    assert reason(backward(built, affine(6), 1, [refused])) == "too-far"


def test_a_value_joined_with_itself_stays() -> None:
    x = Value("x", (2, 3, 3))
    assert refusal(backward(node(Concat(1), x, x, output=(2, 6, 3)), affine(6), 1)) == (
        "several-readers",
        "Concat 'n' reads one value twice",
    )


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_forward_the_other_parts_stay_as_they_are(slot: int) -> None:
    moves = forward(node(Concat(1), *PIECES, output=(2, 6, 3)), slot, affine(PIECES[slot][1]), 1)
    assert isinstance(moves, Moves)
    ((_, found, axis),) = moves.consumed
    assert (found.channels, axis) == (6, 1)
    assert np.count_nonzero(found.shift) == PIECES[slot][1]


def test_forward_ends_where_the_output_cannot_take_it() -> None:
    built = node(Concat(1), *PIECES, output=(2, 6, 3))
    assert reason(forward(built, 0, affine(1), 1, ["out"])) == "too-far"


def test_forward_along_another_axis_stays() -> None:
    """Also where that axis has as many elements as the map has channels."""
    built = node(Concat(1), (2, 3, 3), (2, 3, 3), output=(2, 6, 3))
    answer = forward(built, 0, affine(3), 2)
    assert refusal(answer) == ("axis-not-proven", "Concat 'n' joins along another axis or unknown sizes")


def test_forward_of_another_number_of_channels_stays() -> None:
    assert reason(forward(node(Concat(1), *PIECES, output=(2, 6, 3)), 0, affine(3), 1)) == "axis-not-proven"


@pytest.mark.parametrize("unknown", [None, (2,), (2, None, 3), ()])
@pytest.mark.parametrize("place", [0, 1])
def test_unknown_sizes_stay(unknown: Sequence[int | None] | None, place: int) -> None:
    operands = [unknown, (2, 4, 3)] if place == 0 else [(2, 4, 3), unknown]
    built = node(Concat(1), *operands, output=(2, 6, 3))
    assert refusal(backward(built, affine(6), 1)) == (
        "axis-not-proven",
        "the sizes of what Concat 'n' joins are not known",
    )
    assert reason(forward(built, 1 - place, affine(4), 1)) == "axis-not-proven"


def test_an_input_that_is_left_out_stays() -> None:
    built = node(Concat(1), (2, 4, 3), ..., output=(2, 6, 3))
    assert reason(backward(built, affine(6), 1)) == "axis-not-proven"
    assert reason(forward(built, 0, affine(4), 1)) == "axis-not-proven"
