"""The rules that only pass maps on, each against one node: what they ask of its neighbours, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.passing_on import asked, backward, forward, only, same
from support.rule_laws import NO, affine, mapped, node, refusal

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.activation import Activation
from convbn.fuse.operators.pad import Pad
from convbn.fuse.operators.pool import Pool
from convbn.fuse.operators.slice import Slice
from convbn.fuse.operators.split import Split
from convbn.fuse.view.dataflow import Node, Value

IMAGE = (2, 6, 5, 4)
POSITIVE = Affine(np.arange(1.0, 7), np.zeros(6))


# --- as it is: activations, pools, pads -------------------------------------------------------------

RELU = Activation("Relu")
MAXIMUM, MEAN, COUNTING = Pool("MaxPool", False), Pool("AveragePool", True), Pool("AveragePool", True, True)
COPIES, ZEROS = Pad("Pad", (2, 3), zeros=False), Pad("Pad", (2, 3), zeros=True)
PASSES = {
    "relu": (RELU, POSITIVE),
    "maximum": (MAXIMUM, Affine(POSITIVE.scale, affine(6).shift)),
    "mean": (MEAN, affine(6)),
    "mean that counts zeros": (COUNTING, affine(6, "scale")),
    "copies": (COPIES, affine(6)),
    "zeros": (ZEROS, affine(6, "scale")),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_map_goes_on_as_it_is(name: str) -> None:
    op, found = PASSES[name]
    at = node(op, IMAGE, output=IMAGE)
    data, output = at.inputs[0], at.outputs[0]
    assert only(backward(at, found)) == (data, found, 1)
    assert only(forward(at, found)) == (output, found, 1)
    assert backward(at, found, refused=["v0"]) == NO
    assert forward(at, found, refused=["out"]) == NO


@pytest.mark.parametrize("name", PASSES)
def test_a_node_that_reads_nothing_passes_nothing_on(name: str) -> None:
    """As in a graph with an empty name where the data should be: a map that went there would be lost."""
    op, found = PASSES[name]
    at = node(op, ..., output=IMAGE)
    assert refusal(backward(at, found)) == ("parameters-malformed", f"{at.label} reads nothing")


STOPS = {
    "relu: a shift": (
        RELU,
        affine(6, "shift"),
        1,
        "producer-not-foldable",
        "a positive scale through, and no",
    ),
    "relu: a sign": (RELU, affine(6, "scale"), 1, "negative-scale", "and 3 of 6 are not"),
    "relu: zero": (RELU, Affine(np.eye(6)[0], np.zeros(6)), 1, "negative-scale", "and 5 of 6 are not"),
    "maximum: a sign": (MAXIMUM, affine(6), 1, "negative-scale", "MaxPool 'n' lets only a positive scale"),
    "maximum: channels": (MAXIMUM, POSITIVE, 2, "axis-not-proven", "MaxPool 'n' pools along axis 2"),
    "mean: batch": (MEAN, POSITIVE, 0, "axis-not-proven", "AveragePool 'n' pools along axis 0"),
    "mean: a shift over zeros": (
        COUNTING,
        affine(6, "shift"),
        1,
        "shift-into-padding",
        "counts zeros around",
    ),
    "zeros: a shift": (ZEROS, affine(6, "shift"), 1, "shift-into-padding", "where the shift would lack"),
    "copies: channels": (COPIES, affine(6), 2, "axis-not-proven", "Pad 'n' adds channels"),
}


@pytest.mark.parametrize("name", STOPS)
def test_what_does_not_pass(name: str) -> None:
    op, found, axis, reason, says = STOPS[name]
    at = node(op, IMAGE, output=IMAGE)
    for answer in (backward(at, found, axis), forward(at, found, axis)):
        assert refusal(answer)[0] == reason
        assert says in refusal(answer)[1]


@pytest.mark.parametrize(
    ("least", "goes"), [((5, 4), True), ((6, 4), False), ((5, 5), False), ((6, 1), False)]
)
def test_a_pool_some_of_whose_windows_may_hold_no_data(least: tuple[int, int], goes: bool) -> None:
    at = node(Pool("MaxPool", False, least=least), IMAGE, output=IMAGE)
    for answer in (backward(at, POSITIVE), forward(at, POSITIVE)):
        if goes:
            only(answer)
        else:
            assert "may lie in the padding alone" in refusal(answer)[1]


def test_what_is_no_data() -> None:
    slope = node(Activation("PRelu"), IMAGE, (6, 1, 1), output=IMAGE)
    assert refusal(forward(slope, POSITIVE, slot=1)) == ("producer-not-foldable", "PRelu 'n' bends it")
    pads = node(COPIES, IMAGE, (8,), output=IMAGE)
    assert refusal(forward(pads, POSITIVE, slot=1)) == ("producer-not-foldable", "Pad 'n' pads with it")
    bounds = node(Slice(((2, range(3)),)), IMAGE, (1,), output=IMAGE)
    assert refusal(forward(bounds, POSITIVE, slot=1)) == (
        "axis-not-proven",
        "Slice 'n' reads the map as a position",
    )


# --- pieces -----------------------------------------------------------------------------------------


def split(*sizes: int | None, data: Any = (2, 6, 5), axis: int = 1) -> Node:
    at = node(Split(axis), data, output=(2, sizes[0], 5))
    for i, size in enumerate(sizes[1:], start=1):
        at.outputs.append(Value(f"out{i}", (2, size, 5), producer=at))
    return at


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_behind_a_piece_its_channels_change(piece: int) -> None:
    sizes, start = (1, 3, 2), (0, 1, 4)[piece]
    at, found = split(*sizes), affine(sizes[piece])
    data, whole, axis = only(backward(at, found, output=piece))
    assert (data, axis) == (at.inputs[0], 1)
    x = np.random.default_rng(1).standard_normal((2, 6, 5))
    expected = np.split(x, [1, 4], axis=1)
    expected[piece] = mapped(found, expected[piece], 1)
    np.testing.assert_allclose(mapped(whole, x, 1), np.concatenate(expected, 1))
    assert whole.scale[start] == found.scale[0]
    assert backward(at, found, output=piece, refused=["v0"]) == NO


@pytest.mark.parametrize(("of_piece", "of_data"), [(0, 0), (1, 2), (2, 3)])
def test_pieces_that_have_their_axis_no_more(of_piece: int, of_data: int) -> None:
    """All of the map, along the same axis at its other place; along the axis that is gone there is none."""
    shape = (2, 6, 5, 4)
    at, found = node(Split(1, single=True), shape, output=(2, 5, 4)), affine(shape[of_data])
    assert only(forward(at, found, of_data)) == (at.outputs[0], found, of_piece)
    assert only(backward(at, found, of_piece)) == (at.inputs[0], found, of_data)
    assert refusal(forward(at, affine(6), 1))[0] == "axis-not-proven"


def test_the_pieces_take_all_of_a_map_along_another_axis() -> None:
    at, found = split(3, 3), affine(5)
    assert asked(forward(at, found, 2)) == [(piece, found, 2) for piece in at.outputs]


def test_the_pieces_take_their_parts() -> None:
    at, found = split(1, 3, 2), affine(6)
    answer = asked(forward(at, found))
    assert [(value.name, axis) for value, _, axis in answer] == [("out", 1), ("out1", 1), ("out2", 1)]
    assert np.array_equal(np.concatenate([part.scale for _, part, _ in answer]), found.scale)
    assert np.array_equal(np.concatenate([part.shift for _, part, _ in answer]), found.shift)
    assert [part.channels for _, part, _ in answer] == [1, 3, 2]
    assert forward(at, found, refused=["out1"]) == NO
    across = split(6, 6, axis=2)
    assert [(value.name, part, axis) for value, part, axis in asked(forward(across, found))] == [
        ("out", found, 1),
        ("out1", found, 1),
    ]
    assert forward(across, found, refused=["out1"]) == NO


@pytest.mark.parametrize(
    ("sizes", "data"),
    [
        ((2, None, 1), (2, 6, 5)),
        ((None, 3, 1), (2, 6, 5)),
        ((2, 3, None), (2, 6, 5)),
        ((3, None, 3), (2, 6, 5)),
        ((2, 3, 1), (2, None, 5)),
        ((2, 3, 1), None),
        ((2, 3, 1), (2,)),
        ((2, 3, 1), (2, 5, 5)),
        ((2, 3, 1), (2, 7, 5)),
        ((1, 3, 1), (2, 6, 5)),
    ],
)
def test_pieces_whose_place_is_not_known(sizes: tuple[int | None, ...], data: Any) -> None:
    """Shapes that a model states may be missing or wrong: then no piece has a place in the whole."""
    assert refusal(backward(split(*sizes, data=data), affine(3), output=1)) == (
        "axis-not-proven",
        "how many channels Split 'n' reads and gives is not known",
    )


def test_pieces_of_no_such_axis() -> None:
    """A shape of lower rank than the map's axis, as a wrong value_info states it."""
    for shape in ((), (2,), None):
        at = split(2, 3, 1)
        at.outputs[0].shape = shape
        assert refusal(backward(at, affine(3), output=1))[0] == "axis-not-proven"
        assert refusal(forward(at, affine(6))) == (
            "axis-not-proven",
            "how many channels Split 'n' reads and gives is not known",
        )


def test_pieces_of_other_sizes_than_the_map() -> None:
    for channels in (2, 4):
        assert refusal(backward(split(2, 3, 1), affine(channels), output=1)) == (
            "parameters-malformed",
            f"Split 'n' has 3 output channels and the BatchNorm {channels}",
        )
    for channels in (5, 7):
        assert refusal(forward(split(2, 3, 1), affine(channels))) == (
            "axis-not-proven",
            "the pieces of Split 'n' do not add up",
        )
    assert refusal(backward(split(6, 6, axis=2), affine(6))) == (
        "axis-not-proven",
        "the other pieces of Split 'n' would change, too: refused by the test",
    )


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (0, 2), (1, 4), (5, 6)])
def test_a_slice_of_channels(start: int, stop: int) -> None:
    at = node(Slice(((1, range(start, stop)),)), (2, 6, 5), output=(2, stop - start, 5))
    found = affine(stop - start)
    data, whole, axis = only(backward(at, found))
    assert (data, axis) == (at.inputs[0], 1)
    x = np.random.default_rng(1).standard_normal((2, 6, 5))
    expected = x.copy()
    expected[:, start:stop] = mapped(found, x[:, start:stop], 1)
    np.testing.assert_allclose(mapped(whole, x, 1), expected)
    output, part, axis = only(forward(at, affine(6)))
    assert (output, axis) == (at.outputs[0], 1)
    assert same(part, Affine(affine(6).scale[start:stop], affine(6).shift[start:stop]))
    assert backward(at, found, refused=["v0"]) == NO
    assert forward(at, affine(6), refused=["out"]) == NO


def test_a_slice_along_another_axis_passes_the_map_as_it_is() -> None:
    at, found = node(Slice(((2, range(1, 3)),)), (2, 6, 5), output=(2, 6, 2)), affine(6)
    assert only(backward(at, found)) == (at.inputs[0], found, 1)
    assert only(forward(at, found)) == (at.outputs[0], found, 1)


def test_a_slice_that_reads_an_unknown_number_of_channels() -> None:
    for shape in (None, (2,), (2, None, 5), (2, 3, 5)):
        at = node(Slice(((1, range(1, 4)),)), shape, output=(2, 3, 5))
        assert refusal(backward(at, affine(3))) == (
            "axis-not-proven",
            "how many channels Slice 'n' reads and gives is not known",
        )
    nothing = node(Slice(((2, range(1, 4)),)), ..., output=(2, 3, 3))
    assert refusal(backward(nothing, affine(3))) == ("parameters-malformed", "Slice 'n' reads nothing")


@pytest.mark.parametrize("channels", [2, 4])
def test_a_slice_of_another_size_than_the_map(channels: int) -> None:
    at = node(Slice(((1, range(1, 4)),)), (2, 6, 5), output=(2, 3, 5))
    assert refusal(backward(at, affine(channels))) == (
        "parameters-malformed",
        f"Slice 'n' has 3 output channels and the BatchNorm {channels}",
    )


def test_a_slice_beyond_the_map() -> None:
    at = node(Slice(((1, range(1, 4)),)), (2, 6, 5), output=(2, 3, 5))
    assert refusal(forward(at, affine(3))) == (
        "parameters-malformed",
        "Slice 'n' has 4 input channels and the BatchNorm 3",
    )
