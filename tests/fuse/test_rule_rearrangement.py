"""The rules for what moves elements without changing them: where the map's axis is, on the other side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from support.rule_laws import Moves, affine, backward, forward, node, refusal

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators import reshape as reshape_file
from convbn.fuse.operators.channelwise_identity import ChannelwiseIdentity
from convbn.fuse.operators.mean import Mean
from convbn.fuse.operators.reshape import Reshape
from convbn.fuse.operators.rule import Axes, follow_forward
from convbn.fuse.operators.transpose import Transpose
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node
from convbn.fuse.view.op import Op

Shape = Sequence[int | None] | None


def reshape(source: Shape, target: Shape) -> Node:
    return node(Reshape("Reshape"), source, output=target)


def agreeing(channels: int, times: int) -> Affine:
    """Each number ``times`` times in a row."""
    few = affine(channels)
    return Affine(np.repeat(few.scale, times), np.repeat(few.shift, times))


def moved(answer: Moves | Refusal) -> tuple[Axes, int]:
    """Where the map went, and with how many channels."""
    assert isinstance(answer, Moves), answer
    ((_, found, axis),) = answer.produced or answer.consumed
    return axis, found.channels


def torn(answer: Moves | Refusal, name: str) -> None:
    assert refusal(answer) == (
        "axis-not-proven",
        f"the BatchNorm's channels are not, or not provably, one axis on both sides of {name} 'n'",
    )


# --- Reshape, one axis to one axis ---------------------------------------------------------------------


WHOLE = [
    ((2, 4, 3, 5), 1, (2, 60), 1, 60),
    ((2, 4, 3, 5), 1, (2, 12, 5), 1, 12),
    ((2, 4, 3, 5), 2, (2, 4, 15), 2, 15),
    ((2, 4, 3, 5), 3, (8, 3, 5), 2, 5),
    ((2, 4, 3, 5), 0, (2, 60), 0, 2),
    ((2, 3, 4, 5), 2, (6, 4, 5), 1, 4),
    ((2, 4, 15), 1, (2, 4, 3, 5), 1, 4),
    ((2, 4), 1, (2, 4, 1, 1), 1, 4),
    ((2, 4), 1, (2, 1, 4, 1), 2, 4),
    ((2, 4, 1, 1), 1, (2, 4), 1, 4),
    ((2, 1, 4), 1, (2, 4), 1, 4),
    ((2, 4, 1, 3), 2, (2, 4, 3), 2, 3),
    ((6, 4), 1, (2, 3, 4), 2, 4),
]


@pytest.mark.parametrize(("source", "axis", "target", "place", "channels"), WHOLE)
def test_a_reshape_passes_the_map_on(
    source: tuple[int, ...], axis: int, target: tuple[int, ...], place: int, channels: int
) -> None:
    built, found = reshape(source, target), affine(source[axis])
    assert moved(forward(built, 0, found, axis)) == (place, channels)
    assert moved(backward(reshape(target, source), found, axis)) == (place, channels)


@pytest.mark.parametrize(
    ("source", "axis", "target"),
    [
        ((2, 6, 5), 1, (2, 3, 2, 5)),  # torn apart
        ((2, 6, 6, 6), 1, (2, 2, 3, 6, 6)),
        ((2, 12), 1, (2, 4, 3)),
        ((2, 6), 1, (3, 4)),
        ((4, 6), 0, (6, 4)),
        ((2, 4, 3), 1, (4, 2, 3)),
        ((4, 3), 0, (2, 6)),
    ],
)
def test_a_reshape_that_tears_the_axis_apart_stays_forwards(
    source: tuple[int, ...], axis: int, target: tuple[int, ...]
) -> None:
    torn(forward(reshape(source, target), 0, affine(source[axis]), axis), "Reshape")


@pytest.mark.parametrize(
    ("source", "target", "few", "times"),
    [((2, 60), (2, 4, 3, 5), 4, 15), ((2, 12, 5), (2, 4, 3, 5), 4, 3), ((2, 12, 5), (2, 6, 10), 6, 2)],
)
def test_channels_that_share_an_index_must_agree(
    source: tuple[int, ...], target: tuple[int, ...], few: int, times: int
) -> None:
    built = reshape(source, target)
    assert moved(forward(built, 0, agreeing(few, times), 1)) == (1, few)
    for wrong in ("scale", "shift"):
        found = agreeing(few, times)
        getattr(found, wrong)[1] += 1
        torn(forward(built, 0, found, 1), "Reshape")


def test_of_two_places_the_first_that_can_hold_the_map_is_taken() -> None:
    """``[2, 4] → [2, 1, 4]``: at axis 1 four channels would share an index."""
    assert moved(forward(reshape((2, 4), (2, 1, 4)), 0, affine(4), 1)) == (2, 4)
    assert moved(forward(reshape((2, 4), (2, 1, 4)), 0, agreeing(1, 4), 1)) == (1, 1)


@pytest.mark.parametrize(
    ("source", "target"),
    [((None, 4, 3), (None, 12)), ((None, 4, 3), (2, 12)), ((2, 4, 3), (None, 12)), ((None, 4), (None, 1, 4))],
)
def test_the_batch_may_be_unknown(source: Sequence[int | None], target: Sequence[int | None]) -> None:
    """The law cannot be run without sizes; the place and the numbers are what it would be with them."""
    built, found, moves = reshape(source, target), affine(4), Moves()
    assert follow_forward(moves, built, 0, found, 1) is None
    ((_, onward, axis),) = moves.consumed
    assert axis == len(target) - 1
    assert (onward.scale == np.repeat(found.scale, onward.channels // 4)).all()


@pytest.mark.parametrize(
    ("source", "target", "place", "channels"),
    [
        ((2, 4, None), (2, 4, 3, 5), 1, 4),  # as many in front of it
        ((2, 4, 3), (2, 12, None), 1, 12),
        (("N", 4, "H", "W"), ("N", 4, "k"), 1, 4),
        (("N", 4, 3, "W"), (None, 12, "W"), 1, 12),
        (("N", 4, "H", "W"), (None, 8, "W", "H"), 1, 8),  # its four channels twice over
        (("N", 4, "H", "W"), (None, 6, "W", "H"), None, 0),
        (("N", 4, "H", "W"), ("M", 4, "k"), None, 0),
        (("N", 4, None), (None, 4, None), None, 0),
        ((2, 4, 3), (2, 4, 5), None, 0),  # shapes that contradict each other
    ],
)
def test_dimensions_of_one_name_are_equal(
    source: Sequence[int | str | None], target: Sequence[int | str | None], place: int | None, channels: int
) -> None:
    """Of ``[N, 4, H, W] → [N, 4, k]`` N proves that the map's axis is the second; without a name nothing does."""
    sizes = [[size if isinstance(size, int) else None for size in shape] for shape in (source, target)]
    built, found, moves = reshape(*sizes), affine(4), Moves()
    for value, shape in ((built.inputs[0], source), (built.outputs[0], target)):
        assert value is not None
        value.names = tuple(size if isinstance(size, str) else None for size in shape)
    refused = follow_forward(moves, built, 0, found, 1)
    assert (refused is not None) == (place is None)
    for _, onward, axis in moves.consumed:
        assert (axis, onward.channels) == (place, channels)
        spread = np.tile if target[1] == 8 else np.repeat
        assert (onward.scale == spread(found.scale, channels // 4)).all()


@pytest.mark.parametrize(
    ("source", "axis", "target", "place", "channels"),
    [
        ((2, 3, 4, 5), 2, (2, 60), 1, 60),  # ``permute(0, 2, 1, 3)`` and ``reshape(-1, 60)``
        ((2, 3, 4), 2, (2, 12), 1, 12),
        ((2, 3, 4), 2, (24,), 0, 24),
        ((6, 4, 5), 1, (3, 40), 1, 40),
    ],
)
def test_a_channel_comes_again_on_a_longer_axis(
    source: tuple[int, ...], axis: int, target: tuple[int, ...], place: int, channels: int
) -> None:
    """That the numbers are right is the law's part, which :func:`forward` runs."""
    assert moved(forward(reshape(source, target), 0, affine(source[axis]), axis)) == (place, channels)


def test_a_map_that_repeats_comes_back_to_the_shorter_axis() -> None:
    """``[2, 24] → [6, 8]``: eight numbers three times over."""
    few = affine(8)
    found = Affine(np.tile(few.scale, 3), np.tile(few.shift, 3))
    assert moved(forward(reshape((2, 24), (6, 8)), 0, found, 1)) == (1, 8)
    assert moved(backward(reshape((6, 8), (2, 24)), found, 1)) == (1, 8)
    for wrong in ("scale", "shift"):
        other = Affine(found.scale.copy(), found.shift.copy())
        getattr(other, wrong)[-1] += 1
        torn(forward(reshape((2, 24), (6, 8)), 0, other, 1), "Reshape")


@pytest.mark.parametrize(
    ("source", "axis", "target"), [((2, 3, 4), 2, (4, 6)), ((2, 3, 4, 5), 2, (2, 3, 10, 2))]
)
def test_channels_that_do_not_repeat_within_the_axis_stay(
    source: tuple[int, ...], axis: int, target: tuple[int, ...]
) -> None:
    torn(forward(reshape(source, target), 0, affine(source[axis]), axis), "Reshape")


@pytest.mark.parametrize(
    ("source", "target", "axis"),
    [
        ((None, 4, None), (None, 4, 3, 5), 1),
        ((None, 4, 3), (None, 12, None), 1),
        ((2, 4, 3), (2, None), 1),
        ((2, 4, 3), (2, None, 3), 1),
        ((2, None, 3), (2, 12), 1),
        ((2, 5, 3), (2, 15), 1),  # not the map's channels
        (None, (2, 12), 1),
        ((2, 4, 3), None, 1),
        (..., (2, 12), 1),
    ],
)
def test_unknown_sizes_stay(source: Shape, target: Shape, axis: int) -> None:
    torn(forward(reshape(source, target), 0, affine(4), axis), "Reshape")
    if source is not ...:
        torn(backward(reshape(target, source), affine(4), axis), "Reshape")


def test_of_several_axes_that_could_hold_a_map_again_and_again_the_longest_does() -> None:
    same = Affine(np.full(6, 2.0), np.full(6, 3.0))
    assert moved(forward(reshape((4, 6), (8, 3)), 0, same, 1)) == (0, 8)
    assert moved(forward(reshape((6, 4), (3, 8)), 0, Affine(same.scale[:4], same.shift[:4]), 1)) == (1, 8)


def test_an_axis_that_the_shapes_do_not_have_stays() -> None:
    torn(forward(reshape((4,), (2, 2)), 0, affine(4), 1), "Reshape")
    torn(backward(reshape((2, 2), (4,)), affine(4), 1), "Reshape")
    torn(backward(node(Transpose((1, 0)), (2, 3), output=(3, 2)), affine(6), (1, 2)), "Transpose")


def test_no_channels_stay() -> None:
    torn(forward(reshape((2, 0, 3), (0, 5)), 0, affine(0), 1), "Reshape")


@pytest.mark.parametrize(("source", "target"), [((2, 3, 0), (0, 6)), ((0, 6), (2, 3, 0))])
def test_data_that_is_empty_on_one_side_of_the_axis_stays(source: Shape, target: Shape) -> None:
    assert source is not None
    torn(forward(reshape(source, target), 0, affine(source[1] or 0), 1), "Reshape")


@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, None)])
def test_data_that_is_empty_stays_also_where_its_shape_does(shape: Shape) -> None:
    torn(forward(reshape(shape, shape), 0, affine(3), 1), "Reshape")


def test_empty_data_stays() -> None:
    torn(forward(reshape((2, 4, 0), (2, 3, 0)), 0, affine(4), 1), "Reshape")


def test_the_shape_is_no_data() -> None:
    built = node(Reshape("Reshape"), (2, 4, 3), (2, 4, 3), output=(2, 12))
    torn(forward(built, 1, affine(4), 1), "Reshape")


@pytest.mark.parametrize("op", [Reshape("Reshape"), Transpose((0, 1, 2)), ChannelwiseIdentity("Identity")])
def test_where_the_next_operator_refuses_it_ends(op: Op) -> None:
    built = node(op, (2, 4, 3), output=(2, 4, 3))
    assert refusal(forward(built, 0, affine(4), 1, ["out"]))[0] == "too-far"
    assert refusal(backward(built, affine(4), 1, ["v0"]))[0] == "too-far"


# --- along several axes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "output", "axis", "axes"),
    [
        ((2, 3, 4, 5), (2, 12, 5), 1, (1, 2)),
        ((2, 3, 4), (2, 12), 1, (1, 2)),
        ((2, 3, 2, 2, 5), (2, 12, 5), 1, (1, 2, 3)),
        ((3, 4, 5), (12, 5), 0, (0, 1)),
        ((2, 7, 3, 4, 5), (14, 12, 5), 1, (2, 3)),
    ],
)
def test_an_axis_made_of_several(
    data: tuple[int, ...], output: tuple[int, ...], axis: int, axes: tuple[int, ...]
) -> None:
    assert moved(backward(reshape(data, output), affine(output[axis]), axis)) == (axes, output[axis])
    assert refusal(backward(reshape(data, output), affine(output[axis]), axis, ["v0"]))[0] == "too-far"


def test_a_map_that_repeats_lies_along_all_that_its_axis_was_made_of_too() -> None:
    again = Affine(np.tile(affine(4).scale, 3), np.tile(affine(4).shift, 3))
    assert moved(backward(reshape((2, 3, 4), (2, 12)), again, 1)) == ((1, 2), 12)


@pytest.mark.parametrize(
    ("data", "output"),
    [
        ((2, None, 4), (2, 12)),
        ((2, 3, None), (2, 12)),
        ((None, 3, 4), (2, 12, None)),
        ((2, 3, 4, None), (2, 12, None)),
        ((2, 3, 4), (2, None)),
        ((2, 5, 4), (2, 12)),
        ((24, 3), (4, 12, 2)),
        ((2, 3, 5, 4), (6, 12, 5)),  # twelve in front of the wrong place
        ((3, 8), (2, 12)),  # across the border
        ((3, 2), (2, 12)),  # shapes that contradict each other
    ],
)
def test_an_axis_of_unknown_parts_stays(data: Sequence[int | None], output: Sequence[int | None]) -> None:
    torn(backward(reshape(data, output), affine(12), 1), "Reshape")


def test_an_axis_of_several_needs_the_channels_of_the_map() -> None:
    torn(backward(reshape((2, 3, 4), (2, 12)), affine(6), 1), "Reshape")


@pytest.mark.parametrize(("order", "axes"), [((0, 2, 1, 3), (3, 1)), ((3, 0, 1, 2), (0, 2))])
def test_several_axes_through_a_transpose(order: tuple[int, ...], axes: tuple[int, int]) -> None:
    shape = (2, 3, 4, 5)
    output = tuple(shape[i] for i in order)
    built = node(Transpose(order), shape, output=output)
    expected = tuple(order[axis] for axis in axes)
    channels = output[axes[0]] * output[axes[1]]
    assert moved(backward(built, affine(channels), axes)) == (expected, channels)
    assert refusal(backward(built, affine(channels), axes, ["v0"]))[0] == "too-far"


@pytest.mark.parametrize(
    ("data", "output", "axes", "place"),
    [
        ((2, 12), (2, 3, 4), (1, 2), (1, 12)),
        ((2, 12, 5), (2, 3, 4, 5), (1, 2), (1, 12)),
        ((12, 5), (3, 4, 5), (0, 1), (0, 12)),
        ((2, 60), (2, 3, 4, 5), (1, 2), (1, 60)),
        ((None, 12), (None, 3, 4), (1, 2), (1, 12)),
        ((2, 24), (2, 3, 2, 4), (1, 2, 3), (1, 24)),
        ((14, 12, 5), (2, 7, 3, 4, 5), (2, 3), (1, 12)),
    ],
)
def test_several_axes_become_one_again(
    data: Sequence[int | None], output: Sequence[int | None], axes: tuple[int, ...], place: tuple[int, int]
) -> None:
    built = reshape(data, output)
    if None not in data:
        channels = int(np.prod([output[axis] or 0 for axis in axes]))
        assert moved(backward(built, affine(channels), axes)) == place
        return
    moves = Moves()
    assert reshape_file.multi_axis(moves, built, built.outputs[0], affine(12), axes) is None
    assert (moves.produced[0][2], moves.produced[0][1].channels) == place


@pytest.mark.parametrize(
    ("data", "output", "axes"),
    [
        ((2, 12), (2, 3, 4), (2, 1)),  # the other way round
        ((2, 12), (3, 2, 4), (0, 2)),  # something between them
        ((2, 12), (2, 3, None), (1, 2)),
        ((2, 12), (2, None, 4), (1, 2)),
        ((2, 24), (2, 4, 6), (1, 2)),  # 24 channels, and the map has 12
        ((4, 12), (2, 4, 6), (1, 2)),
        ((2, 12), (2, 3, None, 4), (1, 2, 3)),
        ((3, 8), (2, 3, 4), (1, 2)),
        (None, (2, 3, 4), (1, 2)),
        ((2, 12), None, (1, 2)),
        (..., (2, 3, 4), (1, 2)),
    ],
)
def test_several_axes_that_do_not_become_one_stay(data: Shape, output: Shape, axes: tuple[int, ...]) -> None:
    torn(backward(reshape(data, output), affine(12), axes), "Reshape")


@pytest.mark.parametrize(("data", "output"), [(None, (2, 3, 4)), ((2, 3, 4), None)])
def test_several_axes_of_unknown_shapes_stay_before_a_transpose(data: Shape, output: Shape) -> None:
    built = node(Transpose((0, 2, 1)), data, output=output)
    torn(backward(built, affine(12), (1, 2)), "Transpose")


def test_one_channel_along_axes_that_are_not_known_stays() -> None:
    torn(backward(reshape((1,), None), affine(1), (0, 1)), "Reshape")


def test_several_axes_end_where_the_next_operator_refuses() -> None:
    assert refusal(backward(reshape((2, 12), (2, 3, 4)), affine(12), (1, 2), ["v0"]))[0] == "too-far"


# --- Transpose, ChannelwiseIdentity, Mean ---------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [(0, 2, 1), (1, 2, 0), (2, 0, 1)])
def test_transpose(order: tuple[int, ...], axis: int) -> None:
    shape = (2, 3, 4)
    output = tuple(shape[i] for i in order)
    built = node(Transpose(order), shape, output=output)
    assert moved(backward(built, affine(output[axis]), axis)) == (order[axis], output[axis])
    assert moved(forward(built, 0, affine(shape[axis]), axis)) == (order.index(axis), shape[axis])


def test_a_transpose_of_lower_rank_stays() -> None:
    built = node(Transpose((1, 0)), (2, 3), output=(3, 2))
    torn(backward(built, affine(3), 2), "Transpose")
    torn(forward(built, 0, affine(3), 2), "Transpose")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_passage(axis: int) -> None:
    built = node(ChannelwiseIdentity("Dropout"), (2, 3, 4), output=(2, 3, 4))
    assert moved(backward(built, affine(2 + axis), axis)) == (axis, 2 + axis)
    assert moved(forward(built, 0, affine(2 + axis), axis)) == (axis, 2 + axis)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (None, (2, 3, 4)),
        ((2, 3, 4), None),
        (None, None),
        (None, (2, None, 4)),
        ((2, None, 4), None),
        ((2,), (2,)),
        ((2,), (2, 3)),
        ((2, 3), (2,)),
        ((2, 3, 4), (2, 6, 4)),
        ((2, None, 4), (2, 3, 4)),
        ((2, 3, 4), (2, None, 4)),
        (..., (2, 3, 4)),
    ],
)
def test_a_passage_that_may_change_the_axis_stays(source: Shape, target: Shape) -> None:
    built = node(ChannelwiseIdentity("Resize"), source, output=target)
    torn(backward(built, affine(3), 1), "Resize")
    torn(forward(built, 0, affine(3), 1), "Resize")


@pytest.mark.parametrize(
    ("axes", "keepdims", "inner", "outer"),
    [
        ((2, 3), True, 1, 1),
        ((2, 3), False, 1, 1),
        ((1,), False, 2, 1),
        ((1,), True, 2, 2),
        ((0, 2), False, 3, 1),
        ((1, 2, 3), False, 0, 0),
    ],
)
def test_mean(axes: tuple[int, ...], keepdims: bool, inner: int, outer: int) -> None:
    shape = (2, 3, 4, 5)
    output = np.zeros(shape).mean(axes, keepdims=keepdims).shape
    built = node(Mean(axes, 4, keepdims), shape, output=output)
    assert moved(backward(built, affine(shape[inner]), outer)) == (inner, shape[inner])
    assert moved(forward(built, 0, affine(shape[inner]), inner)) == (outer, shape[inner])


@pytest.mark.parametrize("keepdims", [True, False])
def test_a_mean_over_the_axis_stays(keepdims: bool) -> None:
    output = (2, 1, 4) if keepdims else (2, 4)
    built = node(Mean((1,), 3, keepdims), (2, 3, 4), output=output)
    torn(forward(built, 0, affine(3), 1), "Mean")
    if keepdims:
        torn(backward(built, affine(1), 1), "Mean")


@pytest.mark.parametrize("keepdims", [True, False])
def test_an_axis_that_a_mean_does_not_have_stays(keepdims: bool) -> None:
    built = node(Mean((1,), 3, keepdims), (2, 3, 4), output=(2, 1, 4) if keepdims else (2, 4))
    torn(backward(built, affine(4), 3 if keepdims else 2), "Mean")
    torn(forward(built, 0, affine(4), 3), "Mean")
