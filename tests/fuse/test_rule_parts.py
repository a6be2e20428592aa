"""What the rules share: constants and their refusals, axes, broadcasting, and which rule is for what."""

from __future__ import annotations

import numpy as np
import pytest
from support.rule_laws import Moves, affine, node

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.broadcast import along, per_channel, shaped
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv, conv_parameters
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.normalization import Normalization
from convbn.fuse.operators.registry import rule_for, rules
from convbn.fuse.operators.rule import (
    constant_at,
    not_positive,
    onto_data,
    parameters,
    wrong_axis,
    wrong_channels,
)
from convbn.fuse.operators.slice import Slice
from convbn.fuse.operators.split import Split
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant
from convbn.fuse.view.op import Other

W, B = np.ones((4, 6, 3), "f4"), np.ones(4, "f4")


def test_a_constant_at_a_slot() -> None:
    at = node(Conv(1), (2, 6, 5), W, ..., output=None)
    found = constant_at(at, 1, "weight")
    assert isinstance(found, Constant)
    assert found.array() is W
    assert constant_at(at, 2, "bias") is None
    assert constant_at(at, 3, "nothing") is None
    refusal = constant_at(at, 0, "data")
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.WEIGHT_NOT_CONSTANT
    assert refusal.detail == "the data 'v0' of Conv 'n' is an input of the model"
    reason = Refusal(Reason.OVERRIDABLE, "somebody may feed another")
    assert at.inputs[0] is not None
    at.inputs[0].not_constant = reason
    assert constant_at(at, 0, "data") is reason


def test_weight_and_bias() -> None:
    at = node(Conv(1), (2, 6, 5), W, B, output=None)
    for read in (parameters, conv_parameters):
        found = read(Moves(), at)
        assert isinstance(found, tuple)
        assert found[1] is not None
        assert (found[0].array() is W, found[1].array() is B) == (True, True)
        without = read(Moves(), node(Conv(1), (2, 6, 5), W, output=None))
        assert isinstance(without, tuple)
        assert without[1] is None
        assert read(Moves(), node(Conv(1), (2, 6, 5), output=None)) == Refusal(
            Reason.WEIGHT_NOT_CONSTANT, "Conv 'n' has no weight"
        )
        for operands, name in (((4, 6, 3), ...), "v1"), ((W, (4,)), "v2"):
            refused = read(Moves(), node(Conv(1), (2, 6, 5), *operands, output=None))
            assert isinstance(refused, Refusal)
            assert (refused.reason, f"'{name}'" in refused.detail) == (Reason.WEIGHT_NOT_CONSTANT, True)


def test_what_this_attempt_set_already_is_the_constant() -> None:
    at = node(Linear(1), (2, 6), np.ones((6, 4), "f4"), output=(2, 4))
    moves = Moves(constants={1: Constant.of(np.zeros((6, 4))), 2: Constant.of(np.zeros(4))})
    assert parameters(moves, at) == (moves.constants[1], moves.constants[2])


def test_data_to_ask() -> None:
    at, found, moves = node(Slice(((1, range(2)),)), (2, 6), output=(2, 2)), affine(6), Moves()
    assert onto_data(moves, at, found, 1) is None
    assert moves.produced == [(at.inputs[0], found, 1)]


@pytest.mark.parametrize(
    ("scale", "count"), [([1, 2, 1e-30], 0), ([1, 0, 1], 1), ([-1, 0, 0.5], 2), ([1, -1, 2], 1)]
)
def test_only_positive_scales(scale: list[float], count: int) -> None:
    refused = not_positive(node(Split(1), (2, 3), output=(2, 3)), Affine(np.array(scale), np.zeros(3)))
    assert refused == (
        Refusal(
            Reason.NEGATIVE_SCALE, f"Split 'n' lets only a positive scale through, and {count} of 3 are not"
        )
        if count
        else None
    )


def test_only_the_axis_of_the_output() -> None:
    images = node(BatchNorm(0.1), (2, 6, 5), output=(2, 6, 5))
    assert wrong_axis(images, 1) is None
    assert wrong_axis(images, 2) == Refusal(
        Reason.AXIS_NOT_PROVEN,
        "the BatchNorm normalises axis 2, and the output channel axis of BatchNorm 'n' is 1",
    )
    for rank, axis in ((2, 1), (3, 2)):
        rows = node(Normalization("LayerNorm", None), (2,) * rank, output=(2,) * rank)
        assert wrong_axis(rows, axis) is None
        assert wrong_axis(rows, axis - 1) is not None
    assert wrong_axis(node(Linear(1), (2, 6), output=None), 1) == Refusal(
        Reason.AXIS_NOT_PROVEN,
        "the BatchNorm normalises axis 1, and the output channel axis of Linear 'n' cannot be known, because its "
        "rank is not (example inputs, --input-shape or stored shapes would settle it)",
    )


def test_another_number_of_channels() -> None:
    at = node(Linear(1), (2, 6), output=None)
    assert wrong_channels(at, 4, 6) == Refusal(
        Reason.PARAMETERS_MALFORMED, "Linear 'n' has 4 output channels and the BatchNorm 6"
    )
    assert wrong_channels(at, 4, 6, "input").detail == "Linear 'n' has 4 input channels and the BatchNorm 6"


@pytest.mark.parametrize(
    ("shape", "rank", "axis"),
    [
        ((), 0, -1),
        ((), 4, -1),
        ((1,), 1, -1),
        ((1, 1), 4, -1),
        ((6,), 1, 0),
        ((6,), 4, 3),
        ((2,), 4, 3),
        ((6, 1, 1), 4, 1),
        ((1, 6, 1, 1), 4, 1),
        ((2, 1, 1, 1), 4, 0),
        ((1, 6), 2, 1),
        ((6, 1), 2, 0),
        ((6, 6), 4, None),
        ((2, 2), 2, None),
        ((6, 1, 6), 4, None),
        ((2, 3, 4), 4, None),
        ((6,), 0, None),
        ((1, 6, 1, 1), 3, None),
        ((1, 1), 1, None),
    ],
)
def test_the_axis_along_which_a_constant_varies(shape: tuple[int, ...], rank: int, axis: int | None) -> None:
    assert per_channel(shape, rank) == axis
    if axis is not None and axis >= 0:
        # NumPy's own broadcasting is the judge.
        numbers = np.arange(np.prod(shape), dtype=float).reshape(shape)
        seen = np.broadcast_to(numbers, [max(shape)] * rank)
        expected = np.broadcast_to(along(numbers.ravel(), axis, rank), seen.shape)
        np.testing.assert_array_equal(seen, expected)
        assert along(numbers.ravel(), axis, rank).shape == tuple(
            max(shape) if i == axis else 1 for i in range(rank)
        )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6,), (1, 6, 1), (6, 1, 1)])
def test_a_constant_as_a_vector(shape: tuple[int, ...]) -> None:
    numbers = np.arange(2.0, 2.0 + np.prod(shape)).reshape(shape)
    expected = np.arange(2.0, 8.0) if numbers.size == 6 else np.full(6, 2.0)
    np.testing.assert_array_equal(shaped(numbers, 6), expected)


def test_each_operator_has_its_own_rule() -> None:
    assert len({rule.operator for rule in rules()}) == len(rules())
    assert tuple(rule_for(object.__new__(rule.operator)) for rule in rules()) == rules()
    assert rule_for(Other("Tanh")) is None
    names = [rule.full_name for rule in rules()]
    assert len(set(names)) == len(names)
    assert {"batchnorm-into-conv", "batchnorm-through-split"} <= set(names)
