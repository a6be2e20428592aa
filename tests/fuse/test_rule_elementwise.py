"""The rule for sums, differences, products and quotients with a constant: the law, and every refusal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from support.rule_laws import Moves, affine, backward, forward, node, reason, refusal, took

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.elementwise import RULE, Arithmetic, Elementwise
from convbn.fuse.view.dataflow import Constant, Node

ADD, SUB, MUL, DIV = Arithmetic
ALL, SUMS = list(Arithmetic), [ADD, SUB]
C = 4
X = (2, C, 3, 5)
KINDS = ["both", "scale", "shift"]
NOT_PROVEN, NOT_LINEAR, ILL = "axis-not-proven", "producer-not-foldable", "ill-conditioned"


def numbers(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.asarray(rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape), "f4")


def at(
    operation: Arithmetic,
    *operands: object,
    output: Sequence[int | None] | None = X,
) -> Node:
    return node(Elementwise(operation), *operands, output=output)


def beside(operation: Arithmetic, slot: int, constant: np.ndarray, data: Sequence[int] = X) -> Node:
    """With the constant at ``slot``."""
    return at(operation, *([constant, data] if slot == 0 else [data, constant]))


PER_CHANNEL: list[tuple[int, ...]] = [(C, 1, 1), (1, C, 1, 1), (), (1,), (1, 1, 1)]
OTHERS: list[tuple[int, ...]] = [X, (C, 3, 5), (5,), (3, 1), (2, 1, 1, 1)]


def test_a_factor_whose_numbers_would_lose_their_digits_in_one_channel_stays() -> None:
    """The largest of all channels is no measure."""
    found = Affine.scale_by(np.array([1.0, 1e-7, 1, 1]))
    for shape in ((C, 1, 1), (1, C, 1, 1)):
        assert reason(backward(beside(MUL, 1, np.ones(shape, "f2")), found, 1)) == "out-of-range"


# --- backward, a constant ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("shape", PER_CHANNEL + OTHERS)
@pytest.mark.parametrize("operation", SUMS)
def test_a_sum_with_a_constant(operation: Arithmetic, shape: tuple[int, ...], slot: int, kind: str) -> None:
    built = beside(operation, slot, numbers(*shape))
    found = affine(C, kind)
    moves = took(backward(built, found, 1))
    ((value, onward, axis),) = moves.produced
    assert value is built.inputs[1 - slot]
    assert (onward.scale == found.scale).all()
    assert onward.is_scale
    assert axis == 1
    # No larger than it must be: a module's parameter keeps its shape.
    assert moves.constants[slot].shape == np.broadcast_shapes(shape, (C, 1, 1))


@pytest.mark.parametrize("operation", SUMS)
def test_the_identity_changes_no_constant(operation: Arithmetic) -> None:
    moves = took(backward(beside(operation, 1, numbers(C, 1, 1)), Affine(np.ones(C), np.zeros(C)), 1))
    assert not moves.constants


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("shape", PER_CHANNEL + OTHERS)
@pytest.mark.parametrize("operation", [MUL, DIV])
def test_a_factor_takes_a_scale_alone(operation: Arithmetic, shape: tuple[int, ...], slot: int) -> None:
    answer = backward(beside(operation, slot, numbers(*shape)), affine(C, "scale"), 1)
    if operation is DIV and slot == 0:
        assert refusal(answer) == (NOT_LINEAR, "Div 'n' divides a constant by its data")
        return
    moves = took(answer)
    assert not moves.produced
    assert moves.constants[slot].shape == np.broadcast_shapes(shape, (C, 1, 1))


@pytest.mark.parametrize("kind", ["both", "shift"])
@pytest.mark.parametrize(("operation", "slot"), [(MUL, 0), (MUL, 1), (DIV, 1)])
@pytest.mark.parametrize("shape", PER_CHANNEL)
def test_behind_a_factor_a_shift_is_divided_by_it(
    shape: tuple[int, ...], operation: Arithmetic, slot: int, kind: str
) -> None:
    moves = took(backward(beside(operation, slot, numbers(*shape)), affine(C, kind), 1))
    assert not moves.constants
    assert len(moves.produced) == 1


@pytest.mark.parametrize("shape", OTHERS)
def test_a_shift_behind_a_factor_along_another_axis_stays(shape: tuple[int, ...]) -> None:
    answer = backward(beside(MUL, 1, numbers(*shape)), affine(C), 1)
    said = "the constant of Mul 'n' differs within a channel, so no shift passes it"
    assert refusal(answer) == (NOT_LINEAR, said)


@pytest.mark.filterwarnings("error")
def test_a_shift_and_a_factor_of_zero() -> None:
    constant = numbers(C, 1, 1)
    constant[2] = 0
    zero = "is 0 in some channel, so no shift passes it"
    for operation, way in ((MUL, "backward"), (DIV, "backward"), (DIV, "forward")):
        built = beside(operation, 1, constant)
        answer = backward(built, affine(C), 1) if way == "backward" else forward(built, 0, affine(C), 1)
        assert refusal(answer) == (NOT_LINEAR, f"the constant of {operation} 'n' {zero}")
    took(backward(beside(MUL, 1, constant), affine(C, "scale"), 1))
    took(forward(beside(MUL, 1, constant), 0, affine(C), 1))


@pytest.mark.filterwarnings("error")
def test_a_divisor_cannot_take_a_scale_of_zero() -> None:
    scale = np.array([4.0, 0.0, 2.0, 3.0])
    answer = backward(beside(DIV, 1, numbers(C, 1, 1)), Affine.scale_by(scale), 1)
    assert refusal(answer) == (ILL, "the constant of Div 'n' cannot take a scale of 0")
    took(backward(beside(MUL, 1, numbers(C, 1, 1)), Affine.scale_by(scale), 1))


@pytest.mark.parametrize("operation", [ADD, MUL])
def test_a_constant_that_cannot_be_set_ends_it(operation: Arithmetic) -> None:
    assert reason(backward(beside(operation, 1, numbers(C, 1, 1)), affine(C, "scale"), 1, [1])) == "too-far"


@pytest.mark.parametrize("operation", [ADD, MUL])
def test_a_constant_of_integers_stays(operation: Arithmetic) -> None:
    built = beside(operation, 1, np.arange(1, C + 1).reshape(C, 1, 1))
    integers = ("weight-not-constant", "the constant is stored as int64, not as a float")
    assert refusal(backward(built, affine(C, "scale"), 1)) == integers
    if operation is ADD:
        assert refusal(forward(built, 0, affine(C), 1)) == integers
        assert refusal(forward(built, 0, affine(C, "shift"), 1)) == integers


@pytest.mark.parametrize("operation", [MUL, DIV])
def test_a_constant_that_is_no_number_stays(operation: Arithmetic) -> None:
    constant = numbers(C, 1, 1)
    constant[2] = np.inf
    assert refusal(backward(beside(operation, 1, constant), affine(C, "scale"), 1)) == (
        "bad-statistics",
        "the folded constant holds Inf or NaN",
    )


def test_some_scales_may_be_one() -> None:
    found = Affine(np.array([1.0, 3.0, 2.0, 1.0]), np.ones(C))
    took(forward(beside(ADD, 1, numbers(C, 1, 1)), 0, found, 1))
    took(backward(beside(DIV, 1, numbers(C, 1, 1)), Affine.scale_by(found.scale), 1))


@pytest.mark.parametrize(
    ("data", "output"),
    [
        (None, X),
        (X[1:], X),
        ((2, 1, 3, 5), X),
        ((2, None, 3, 5), X),
        (X, X[1:]),
        ((C,), (C,)),  # the constant has the higher rank, whatever the shapes say
    ],
)
def test_data_without_the_channels_stays(data: Sequence[int | None] | None, output: Sequence[int]) -> None:
    built = at(ADD, data, numbers(C, 1, 1), output=output)
    assert reason(backward(built, affine(C), min(1, len(output) - 1))) == NOT_PROVEN


def test_data_that_is_broadcast_along_the_axis_stays() -> None:
    built = at(ADD, (2, 1, 3, 5), numbers(C, 1, 1))
    assert refusal(backward(built, affine(C), 1)) == (
        NOT_PROVEN,
        "Add 'n' broadcasts its data along the map's axis",
    )


def test_two_constants_or_no_rank_stay() -> None:
    two = at(ADD, numbers(*X), numbers(C, 1, 1))
    assert refusal(backward(two, affine(C), 1)) == (
        NOT_PROVEN,
        "the rank of what Add 'n' gives is not known",
    )
    assert reason(backward(at(ADD, X, numbers(C, 1, 1), output=None), affine(C), 1)) == NOT_PROVEN
    assert reason(backward(at(ADD, X, X, output=None), affine(C), 1)) == NOT_PROVEN


# --- forward, a constant -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("shape", PER_CHANNEL + OTHERS)
@pytest.mark.parametrize("operation", SUMS)
def test_past_a_sum_with_a_constant(
    operation: Arithmetic, shape: tuple[int, ...], slot: int, kind: str
) -> None:
    built = beside(operation, 1 - slot, numbers(*shape))
    found = affine(C, kind)
    moves = took(forward(built, slot, found, 1))
    assert moves.constants[1 - slot].shape == np.broadcast_shapes(shape, (C, 1, 1))
    if kind == "shift":
        assert not moves.consumed
    else:
        ((_, onward, _),) = moves.consumed
        assert onward.is_scale
        assert (onward.scale == found.scale).all()


@pytest.mark.parametrize("kind", ["both", "shift"])
def test_past_a_sum_whose_constant_cannot_be_set(kind: str) -> None:
    assert reason(forward(beside(ADD, 1, numbers(C, 1, 1)), 0, affine(C, kind), 1, [1])) == "too-far"


def test_past_a_sum_with_a_constant_a_scale_of_zero_stays() -> None:
    found = Affine(np.array([4.0, 0.0, 2.0, 3.0]), np.ones(C))
    assert refusal(forward(beside(ADD, 1, numbers(C, 1, 1)), 0, found, 1)) == (
        ILL,
        "a scale of 0 cannot be taken out of Add 'n'",
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("shape", PER_CHANNEL + OTHERS)
@pytest.mark.parametrize("operation", [MUL, DIV])
def test_past_a_factor(operation: Arithmetic, shape: tuple[int, ...], slot: int, kind: str) -> None:
    answer = forward(beside(operation, 1 - slot, numbers(*shape)), slot, affine(C, kind), 1)
    if operation is DIV and slot == 1:
        assert refusal(answer) == (NOT_LINEAR, "Div 'n' divides by its data")
    elif kind != "scale" and shape in OTHERS:
        assert refusal(answer) == (
            NOT_LINEAR,
            f"the constant of {operation} 'n' differs within a channel, so no shift passes it",
        )
    else:
        assert not took(answer).constants


def test_past_a_constant_that_broadcasts_the_data_along_the_axis() -> None:
    built = at(MUL, (2, 1, 3, 5), numbers(C, 1, 1))
    assert refusal(forward(built, 0, affine(1), 1)) == (
        NOT_PROVEN,
        "Mul 'n' broadcasts its data along the map's axis",
    )


def test_a_constant_is_the_one_this_attempt_has_already_set() -> None:
    built = beside(ADD, 1, numbers(C, 1, 1))
    moves = Moves(constants={1: Constant.of(np.zeros((C, 1, 1), "f4"))})
    found = affine(C)
    assert RULE.backward(moves, built, built.outputs[0], found, 1) is None
    np.testing.assert_allclose(moves.constants[1].exact().reshape(-1), found.shift)
