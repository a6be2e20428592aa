"""The rule for convolutions that their owner registers: the outputs take the map, wherever the weight has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.rule_laws import Moves, affine, mapped, node, refusal

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.registered_conv import RegisteredConv, backward
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node

WEIGHT = np.random.default_rng(1).normal(size=(2, 4, 3))
BIAS = np.random.default_rng(2).normal(size=4)


def layer(weight: np.ndarray = WEIGHT, *bias: Any, output_axis: int = 1) -> Node:
    return node(RegisteredConv("own", output_axis), (5, 3), weight, *bias, output=(5, 4))


def moved(at: Node, found: Affine, *refused: int) -> Moves | Refusal:
    moves = Moves(refused)
    stopped = backward(moves, at, at.outputs[0], found, 1)
    return moves if stopped is None else stopped


@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
@pytest.mark.parametrize("bias", [[], [BIAS]])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_outputs_take_the_map(axis: int, bias: list[np.ndarray], kind: str) -> None:
    weight, found = np.moveaxis(WEIGHT, 1, axis), affine(4, kind)
    moves = moved(layer(weight, *bias, output_axis=axis), found)
    assert isinstance(moves, Moves)
    assert not moves.asked
    expected = {}
    if kind != "shift":
        expected[1] = mapped(Affine.scale_by(found.scale), weight, axis % 3)
    if bias or kind != "scale":
        expected[2] = found.scale * (BIAS if bias else 0) + found.shift
    assert moves.constants.keys() == expected.keys()
    for slot, numbers in expected.items():
        assert moves.constants[slot].dtype == np.float64
        np.testing.assert_allclose(moves.constants[slot].exact(), numbers, rtol=1e-12)


@pytest.mark.parametrize("slot", [1, 2])
def test_what_cannot_be_set_ends_it(slot: int) -> None:
    assert refusal(moved(layer(), affine(4), slot))[0] == "too-far"


def test_another_number_of_outputs_stays() -> None:
    stays = ("parameters-malformed", "own 'n' has 4 output channels and the BatchNorm 3")
    assert refusal(moved(layer(), affine(3))) == stays
    without = node(RegisteredConv("own", 7), (5, 3), WEIGHT, output=(5, 4))
    assert refusal(moved(without, affine(4)))[0] == "parameters-malformed"
    assert "bias" in refusal(moved(layer(WEIGHT, np.ones(3)), affine(4)))[1]


def test_channels_counted_from_the_back() -> None:
    at, moves = node(RegisteredConv("own", 1, -1), (5, 3, 3), WEIGHT, output=(5, 3, 4)), Moves()
    assert backward(moves, at, at.outputs[0], affine(4), 2) is None
    assert moves.constants.keys() == {1, 2}


def test_along_another_axis_or_without_a_known_weight_it_stays() -> None:
    moves, at = Moves(), layer()
    stopped = backward(moves, at, at.outputs[0], affine(5), 0)
    assert stopped is not None
    assert stopped.reason == "axis-not-proven"
    assert refusal(moved(layer((2, 4, 3)), affine(4)))[0] == "weight-not-constant"  # type: ignore[arg-type]
