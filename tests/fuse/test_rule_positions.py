"""The rules for what picks positions or regroups them: Slice, Gather, DepthToSpace. The law is judged in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rule_laws import Moves, affine, backward, forward, node, reason

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.depth_to_space import DepthToSpace
from convbn.fuse.operators.gather import Gather
from convbn.fuse.operators.registry import onnx_readers
from convbn.fuse.operators.slice import Slice
from convbn.fuse.operators.slice import backward as follow
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value

IMAGE = (2, 6, 4, 5)


def where(answer: object) -> tuple[object, int]:
    """Where the map went, and with how many channels."""
    assert isinstance(answer, Moves), answer
    ((_, found, axis),) = answer.produced or answer.consumed
    return axis, found.channels


def sliced(*cuts: tuple[int, range | None]) -> Node:
    shape = list(IMAGE)
    for axis, positions in cuts:
        shape[axis] = 1 if positions is None else len(positions)
    return node(Slice(cuts), IMAGE, output=tuple(shape))


def gathered(axis: int, positions: object) -> Node:
    indices = np.asarray(positions)
    return node(Gather(axis), IMAGE, indices, output=(*IMAGE[:axis], *indices.shape, *IMAGE[axis + 1 :]))


@pytest.mark.parametrize("cut", [range(4), range(1, 6, 2), range(5, -1, -1), range(4, 0, -3), range(2, 3)])
def test_a_slice_of_channels_and_rows(cut: range) -> None:
    at = sliced((1, cut), (2, range(3, 0, -2)))
    assert where(forward(at, 0, affine(6), 1)) == (1, len(cut))
    assert where(backward(at, affine(len(cut)), 1)) == (1, 6)
    assert where(forward(at, 0, affine(5), 3)) == (3, 5)
    assert where(backward(at, affine(5), 3)) == (3, 5)


def test_a_slice_that_is_not_known_stays_along_its_axis_alone() -> None:
    at, moves = sliced((2, None)), Moves()
    assert reason(backward(at, affine(1), 2)) == reason(forward(at, 0, affine(4), 2)) == "axis-not-proven"
    found = affine(6)
    assert follow(moves, at, at.outputs[0], found, 1) is None
    assert moves.produced == [(at.inputs[0], found, 1)]


@pytest.mark.parametrize(
    ("axis", "positions", "of_output", "of_data"),
    [
        (2, -1, 1, 1),
        (2, -1, 2, 3),
        (1, 3, 0, 0),
        (2, [0, 3, 3], 1, 1),
        (2, [[0, 3], [1, 1]], 4, 3),
        (0, [1, 0], 1, 1),
    ],
)
def test_a_gather_along_another_axis(axis: int, positions: object, of_output: int, of_data: int) -> None:
    at = gathered(axis, positions)
    channels = IMAGE[of_data]
    assert where(forward(at, 0, affine(channels), of_data)) == (of_output, channels)
    assert where(backward(at, affine(channels), of_output)) == (of_data, channels)


@pytest.mark.parametrize(("of_output", "of_data"), [(0, 0), (1, 2), (2, 3)])
def test_a_single_position_takes_its_axis_away(of_output: int, of_data: int) -> None:
    at, channels = node(Gather(1, single=True), IMAGE, output=(2, 4, 5)), IMAGE[of_data]
    assert where(forward(at, 0, affine(channels), of_data)) == (of_output, channels)
    assert where(backward(at, affine(channels), of_output)) == (of_data, channels)


@pytest.mark.parametrize("positions", [[4, 0, -3, 1], [5], [0, 1, 2, 3, 4, 5], [-6, -1]])
def test_a_gather_of_channels(positions: list[int]) -> None:
    at = gathered(1, positions)
    assert where(forward(at, 0, affine(6), 1)) == (1, len(positions))
    assert where(backward(at, affine(len(positions)), 1)) == (1, 6)


def test_a_channel_that_is_read_twice_must_agree() -> None:
    at, found = gathered(1, [0, 3, -3]), affine(3)
    assert where(forward(at, 0, affine(6), 1)) == (1, 3)
    assert reason(backward(at, found, 1)) == "axis-not-proven"
    same = Affine(found.scale[[0, 1, 1]], found.shift[[0, 1, 1]])
    assert where(backward(at, same, 1)) == (1, 6)
    same.shift[2] += 1
    assert reason(backward(at, same, 1)) == "axis-not-proven"


def test_a_gather_by_what_is_not_known_stays_along_its_axis() -> None:
    at = node(Gather(1), IMAGE, (3,), output=(2, 3, 4, 5))
    assert reason(backward(at, affine(3), 1)) == reason(forward(at, 0, affine(6), 1)) == "axis-not-proven"
    square = gathered(1, [[0, 1], [2, 3]])
    assert (
        reason(backward(square, affine(2), 1))
        == reason(forward(square, 0, affine(6), 1))
        == "axis-not-proven"
    )
    assert reason(forward(gathered(2, [0]), 1, affine(1), 0)) == "axis-not-proven"


@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
@pytest.mark.parametrize("indices", [(5,), (2, 5), ()])
def test_a_table_that_is_read_from_takes_the_map(indices: tuple[int, ...], kind: str) -> None:
    """An embedding: along the axis of what it holds, not of where it is read."""
    rows = np.zeros(indices, "i8")
    at = node(Gather(0), np.random.default_rng(1).normal(size=(7, 4)), rows, output=(*indices, 4))
    moves = backward(at, affine(4, kind), len(indices))
    assert isinstance(moves, Moves)
    assert not moves.asked
    assert moves.constants.keys() == {0}
    assert reason(backward(at, affine(4, kind), len(indices), [0])) == "too-far"
    assert reason(backward(at, affine(5, kind), len(indices))) == "axis-not-proven"
    assert reason(backward(at, affine(4, kind), len(indices) + 1)) == "axis-not-proven"


def test_a_table_whose_numbers_would_lose_their_digits_stays() -> None:
    """In some channel alone: the largest of all is no measure."""
    table = np.ones((7, 2), "f2")
    for shift in (0.0, 1e-7):
        by = Affine(np.array([1.0, 1e-7]), np.array([0.0, shift]))
        at = node(Gather(0), table, np.zeros(5, "i8"), output=(5, 2))
        assert reason(backward(at, by, 1)) == "out-of-range"


def test_no_positions_are_no_channels() -> None:
    at = gathered(1, np.zeros(0, "i8"))
    assert where(forward(at, 0, affine(6), 1)) == (1, 0)
    nothing = node(Gather(1), (2, 0, 3), np.zeros(0, "i8"), output=(2, 0, 3))
    assert where(forward(nothing, 0, affine(0), 1)) == (1, 0)
    first = node(Gather(1), (2, 0, 3), np.zeros(1, "i8"), output=(2, 1, 3))
    assert reason(forward(first, 0, affine(0), 1)) == "parameters-malformed"


def test_a_map_of_no_channels_leaves_all_as_they_are() -> None:
    assert where(backward(gathered(1, np.zeros(0, "i8")), affine(0), 1)) == (1, 6)


def test_positions_beyond_the_channels_stay() -> None:
    assert reason(backward(gathered(1, [0, 6]), affine(2), 1)) == "axis-not-proven"
    for beyond in (6, -7):
        assert reason(forward(gathered(1, [0, beyond]), 0, affine(6), 1)) == "parameters-malformed"


BLOCKS = [(True, True), (False, True), (True, False), (False, False)]


@pytest.mark.parametrize(("channel_major", "to_space"), BLOCKS)
@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_of_an_image_and_channels(channel_major: bool, to_space: bool, block: int) -> None:
    op, times = DepthToSpace("DepthToSpace", block, channel_major, to_space), block**2
    few, many = (2, 3, 2 * block, block), (2, 3 * times, 2, 1)
    at = node(op, many if to_space else few, output=few if to_space else many)
    spread = np.repeat if channel_major else np.tile
    one = affine(3)
    wide = Affine(spread(one.scale, times), spread(one.shift, times))
    on_data, on_output = (wide, one) if to_space else (one, wide)
    assert where(forward(at, 0, on_data, 1)) == (1, on_output.channels)
    assert where(backward(at, on_output, 1)) == (1, on_data.channels)
    assert reason(backward(at, affine(2), 2)) == "axis-not-proven"
    if block > 1:
        wide.scale[-1] += 1
        answer = forward(at, 0, wide, 1) if to_space else backward(at, wide, 1)
        assert reason(answer) == "axis-not-proven"


def test_blocks_along_another_axis_or_of_other_channels_stay() -> None:
    at = node(DepthToSpace("DepthToSpace", 2, True, True), (2, 8, 8, 1), output=(2, 2, 16, 2))
    assert reason(forward(at, 0, affine(8), 2)) == "axis-not-proven"
    assert reason(forward(at, 0, affine(4), 1)) == "axis-not-proven"
    assert reason(backward(at, affine(4), 1)) == "axis-not-proven"


def test_blocks_of_channels_that_are_no_multiple_of_them() -> None:
    """Shapes that contradict each other: a map of 3 channels is none over blocks of four."""
    at = node(DepthToSpace("DepthToSpace", 2, True, True), (2, 3, 2, 1), output=(2, 1, 4, 2))
    assert reason(forward(at, 0, affine(3), 1)) == "axis-not-proven"
    back = node(DepthToSpace("SpaceToDepth", 2, False, False), (2, 1, 4, 2), output=(2, 3, 2, 1))
    assert reason(backward(back, affine(3), 1)) == "axis-not-proven"


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({"blocksize": 2, "mode": "XYZ"}, (2, 4, 4, 4)),
        ({"blocksize": 0}, (2, 4, 4, 4)),
        ({"blocksize": 2}, None),
        ({"blocksize": 2}, (4, 4, 4)),
    ],
)
def test_blocks_of_an_unknown_kind_are_none(attributes: dict[str, Any], shape: Any) -> None:
    call = OnnxCall("DepthToSpace", 20, attributes, [Value("x", shape)], [Value("y")])
    (read,) = onnx_readers("DepthToSpace")
    assert read(call) is None
    known = OnnxCall("DepthToSpace", 20, {"blocksize": 2}, [Value("x", (2, 4, 4, 4))], [Value("y")])
    assert read(known) == DepthToSpace("DepthToSpace", 2, False, True)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(BLOCKS), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_blocks_there_and_back(
    order: tuple[bool, bool], block: int, channels: int, back: bool, agree: bool
) -> None:
    """Whatever the order of channels: towards the blocks a map goes if and only if its numbers agree in each."""
    channel_major, to_space = order
    op = DepthToSpace("DepthToSpace", block, channel_major, to_space)
    few, many = (2, channels, 2 * block, block), (2, channels * block**2, 2, 1)
    at = node(op, many if to_space else few, output=few if to_space else many)
    onto_few = back is not to_space
    given_channels = channels * block**2 if onto_few else channels
    by = affine(given_channels)
    if onto_few and agree:
        spread = np.repeat if channel_major else np.tile
        by = Affine(
            *(spread(numbers, block**2) for numbers in (affine(channels).scale, affine(channels).shift))
        )
    answer = backward(at, by, 1) if back else forward(at, 0, by, 1)
    goes = agree or not onto_few or block == 1
    assert isinstance(answer, Refusal) is not goes
