"""The rule for linear layers: the law on both sides, and every refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support.rule_laws import Moves, affine, backward, forward, node, reason, refusal, took

from convbn.fuse.operators.linear import RULE, Linear
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value

IN, OUT = 3, 4
NOT_PROVEN = "axis-not-proven"
FACTORS = [(1.0, 1.0), (0.5, 2.0)]
KINDS = ["both", "scale", "shift"]


def numbers(*shape: int, dtype: Any = "f4") -> np.ndarray:
    return np.asarray(np.random.default_rng(2).uniform(0.5, 2, shape), dtype)


BIASES: list[list[Any]] = [[], [...], *([numbers(*s)] for s in [(), (1,), (1, 1), (OUT,), (1, OUT)])]


def layer(
    *bias: Any,
    output_axis: int = 0,
    factors: tuple[float, float] = (1.0, 1.0),
    data: Sequence[int | None] | None = (5, IN),
    weight: Any = None,
    output: Sequence[int | None] | None = (5, OUT),
    transposed: bool = False,
) -> Node:
    if weight is None:
        weight = numbers(OUT, IN) if output_axis == 0 else numbers(IN, OUT)
    return node(Linear(output_axis, *factors, transposed), data, weight, *bias, output=output)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("output_axis", [0, 1])
@pytest.mark.parametrize("bias", BIASES)
def test_behind(bias: list[Any], output_axis: int, factors: tuple[float, float], kind: str) -> None:
    built = layer(*bias, output_axis=output_axis, factors=factors)
    moves = took(backward(built, affine(OUT, kind), 1))
    has_bias = bool(bias) and bias[0] is not ...
    assert set(moves.constants) == ({1} if kind != "shift" else set()) | (
        {2} if has_bias or kind != "scale" else set()
    )
    if 2 in moves.constants:
        assert moves.constants[2].array().dtype == np.float32
        assert moves.constants[2].shape == (OUT,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("output_axis", [0, 1])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("data", [(5, IN), (2, 5, IN)])
def test_in_front(
    data: tuple[int, ...], bias: list[Any], output_axis: int, factors: tuple[float, float], kind: str
) -> None:
    built = layer(*bias, output_axis=output_axis, factors=factors, data=data, output=(*data[:-1], OUT))
    moves = took(forward(built, 0, affine(IN, kind), len(data) - 1))
    assert set(moves.constants) == ({1} if kind != "shift" else set()) | ({2} if kind != "scale" else set())
    assert not moves.consumed


@pytest.mark.parametrize("shape", [(2, OUT), (2, 1), (5, OUT)])
def test_a_bias_for_each_row_stays_one(shape: tuple[int, int]) -> None:
    rows = shape[0]
    built = layer(numbers(*shape), data=(rows, IN), output=(rows, OUT))
    for moves in (took(backward(built, affine(OUT), 1)), took(forward(built, 0, affine(IN), 1))):
        assert moves.constants[2].shape == (rows, OUT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_without_a_place_for_a_bias_passes_the_constant_on(kind: str) -> None:
    built = layer(output_axis=1)
    built.locks[2] = Refusal(Reason.NO_BIAS, "no place")
    moves = took(forward(built, 0, affine(IN, kind), 1))
    assert 2 not in moves.constants
    assert [(found.is_shift, axis) for _, found, axis in moves.consumed] == [(True, 1)] * (kind != "scale")
    if kind != "scale":
        assert reason(forward(built, 0, affine(IN, kind), 1, ["out"])) == "too-far"


def test_a_bias_that_would_be_an_addition_is_the_last_resort() -> None:
    """The constant goes on where its readers take it."""
    built = layer(output_axis=1)
    built.adds = frozenset({2})
    moves = took(forward(built, 0, affine(IN), 1))
    assert 2 not in moves.constants
    assert len(moves.consumed) == 1
    moves = took(forward(built, 0, affine(IN), 1, ["out"]))
    assert 2 in moves.constants
    assert not moves.consumed


def test_a_locked_bias_that_is_there_is_set_and_refused_by_who_sets_it() -> None:
    built = layer(numbers(OUT))
    built.locks[2] = Refusal(Reason.PARAMETRIZED, "locked")
    moves = took(forward(built, 0, affine(IN), 1))
    assert 2 in moves.constants


@pytest.mark.parametrize("slot", [1, 2])
def test_what_cannot_be_set_ends_it(slot: int) -> None:
    assert reason(backward(layer(), affine(OUT), 1, [slot])) == "too-far"
    assert reason(forward(layer(), 0, affine(IN), 1, [slot])) == "too-far"


@pytest.mark.parametrize(
    ("output", "axis"), [((5, OUT), 0), ((2, OUT, OUT), 1), (None, 1), ((OUT,), 1), ((5, OUT), 2)]
)
def test_behind_along_another_axis_stays(output: Sequence[int] | None, axis: int) -> None:
    assert reason(backward(layer(output=output), affine(OUT), axis)) == NOT_PROVEN


@pytest.mark.parametrize(
    ("arguments", "slot", "axis"),
    [
        ({"data": (IN, IN)}, 0, 0),
        ({"data": (5, IN)}, 0, 2),
        ({"data": None}, 0, 1),
        ({"data": ...}, 0, 1),
        ({"transposed": True, "data": (IN, IN)}, 0, 1),
        ({}, 1, 1),
        ({}, 2, 1),
    ],
)
def test_in_front_along_another_axis_or_at_another_slot_stays(
    arguments: dict[str, Any], slot: int, axis: int
) -> None:
    assert refusal(forward(layer(**arguments), slot, affine(IN), axis)) == (
        NOT_PROVEN,
        "Linear 'n' does not read the map along its last axis",
    )


@pytest.mark.parametrize("output_axis", [0, 1])
def test_another_number_of_channels_stays(output_axis: int) -> None:
    assert refusal(backward(layer(output_axis=output_axis), affine(OUT + 1), 1)) == (
        "parameters-malformed",
        f"Linear 'n' has {OUT} output channels and the BatchNorm {OUT + 1}",
    )
    assert refusal(forward(layer(output_axis=output_axis), 0, affine(IN + 1), 1)) == (
        "parameters-malformed",
        f"Linear 'n' has {IN} input channels and the BatchNorm {IN + 1}",
    )


@pytest.mark.parametrize("shape", [(OUT,), (2, OUT, IN), ()])
def test_a_weight_of_another_rank_stays(shape: tuple[int, ...]) -> None:
    expected = (NOT_PROVEN, f"the weight of Linear 'n' has rank {len(shape)}, not 2")
    assert refusal(backward(layer(weight=numbers(*shape)), affine(OUT), 1)) == expected
    assert refusal(forward(layer(weight=numbers(*shape)), 0, affine(IN), 1)) == expected


@pytest.mark.parametrize("weight", [(OUT, IN), ...])
def test_a_weight_that_is_not_known_stays(weight: Any) -> None:
    assert reason(backward(layer(weight=weight), affine(OUT), 1)) == "weight-not-constant"
    assert reason(forward(layer(weight=weight), 0, affine(IN), 1)) == "weight-not-constant"


def test_a_bias_that_is_not_known_stays() -> None:
    fed = Value("fed", (OUT,), not_constant=Refusal(Reason.OVERRIDABLE, "fed"))
    assert reason(backward(layer(fed), affine(OUT), 1)) == "overridable-initializer"
    assert reason(forward(layer(fed), 0, affine(IN), 1)) == "overridable-initializer"


@pytest.mark.parametrize("shape", [(5, OUT + 1), (1, 1, OUT), (OUT + 1,)])
def test_a_bias_of_another_shape_stays(shape: tuple[int, ...]) -> None:
    expected = (NOT_PROVEN, f"the bias of Linear 'n' has shape {list(shape)}, not [{OUT}]")
    built = layer(numbers(*shape))
    assert refusal(backward(built, affine(OUT), 1)) == expected
    assert refusal(forward(built, 0, affine(IN), 1)) == expected
    # A scale in front of the layer does not touch the bias.
    moves = Moves()
    assert RULE.forward is not None
    assert RULE.forward(moves, built, 0, affine(IN, "scale"), 1) is None
    assert set(moves.constants) == {1}


@pytest.mark.parametrize("factor", [0.0, np.inf, np.nan])
@pytest.mark.parametrize("bias", [[], [numbers(OUT)]])
def test_a_layer_that_ignores_its_bias(bias: list[Any], factor: float) -> None:
    built = layer(*bias, factors=(1.0, factor))
    expected = ("no-place-for-a-bias", f"Linear 'n' multiplies its bias by {factor}")
    assert refusal(backward(built, affine(OUT), 1)) == expected
    assert refusal(forward(built, 0, affine(IN), 1)) == expected


@pytest.mark.parametrize("way", ["behind", "in front"])
def test_numbers_that_half_precision_cannot_hold_stay(way: str) -> None:
    weight = numbers(OUT, IN, dtype="f2")
    weight[0] = 60000
    built = layer(weight=weight)
    answer = (
        backward(built, affine(OUT, "scale"), 1)
        if way == "behind"
        else forward(built, 0, affine(IN, "scale"), 1)
    )
    assert refusal(answer)[0] == "out-of-range"
    assert "weights" in refusal(answer)[1]


def test_a_bias_that_half_precision_cannot_hold_stays() -> None:
    built = layer(numbers(OUT, dtype="f2"), weight=np.ones((OUT, IN), "f2"))
    found = affine(OUT, "shift")
    found.shift[1] = 1e6
    assert refusal(backward(built, found, 1)) == (
        "out-of-range",
        f"in 1 of {OUT} channels, the folded bias would exceed 6.55e+04, the largest float16",
    )
    inner = affine(IN, "shift")
    inner.shift[1] = 1e6
    assert reason(forward(built, 0, inner, 1)) == "out-of-range"
