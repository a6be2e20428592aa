"""The rule for sums, differences, products and quotients of two values that both flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from support.rule_laws import Moves, affine, backward, forward, node, reason, refusal, took

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.elementwise import RULE, Arithmetic, Elementwise
from convbn.fuse.operators.rule import Axes
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Reader, Value

ADD, SUB, MUL, DIV = Arithmetic
ALL, SUMS = list(Arithmetic), [ADD, SUB]
C = 4
X = (2, C, 3, 5)
KINDS = ["both", "scale", "shift"]
NOT_PROVEN, NOT_LINEAR, ILL = "axis-not-proven", "producer-not-foldable", "ill-conditioned"


def at(operation: Arithmetic, *operands: object, output: Sequence[int | None] | None = X) -> Node:
    return node(Elementwise(operation), *operands, output=output)


# --- backward, two values ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refused", [[], ["v0"]])
@pytest.mark.parametrize("operation", SUMS)
def test_both_operands_of_a_sum_take_the_scale(operation: Arithmetic, refused: list[str], kind: str) -> None:
    built = at(operation, X, (2, C, 1, 5))
    moves = backward(built, affine(C, kind), 1, refused)
    if refused:
        assert reason(moves) == "too-far"
        return
    assert [value.name for value, _, _ in took(moves).produced] == ["v0", "v1"]
    assert took(moves).produced[1][1].is_scale


@pytest.mark.parametrize("operation", SUMS)
def test_the_shift_goes_to_the_operand_that_fewer_read(operation: Arithmetic) -> None:
    built = at(operation, X, X)
    for value in built.inputs:
        assert value is not None
    for shifted in (0, 1, 0):
        moves = took(backward(built, affine(C), 1))
        assert not moves.produced[shifted][1].is_scale
        assert moves.produced[1 - shifted][1].is_scale
        value = built.inputs[shifted]
        assert value is not None
        value.readers += [Reader(node(Elementwise(ADD), value, X, output=X), 0)] * 3


@pytest.mark.parametrize("operation", SUMS)
@pytest.mark.parametrize("shifted", ["v0", "v1"])
@pytest.mark.parametrize("busy", [0, 1])
def test_the_shift_goes_where_it_can(operation: Arithmetic, shifted: str, busy: int) -> None:
    """Each operand in turn takes only a scale."""

    class OneShift(Moves):
        def produce(self, value: Value, affine: Affine, axis: Axes, *, reader: Node) -> Refusal | None:
            if value.name != shifted and not affine.is_scale:
                return Refusal(Reason.NO_BIAS, value.name)
            return super().produce(value, affine, axis, reader=reader)

    built, moves = at(operation, X, X), OneShift()
    stream = built.inputs[busy]
    assert stream is not None
    stream.readers.append(Reader(node(Elementwise(ADD), stream, X, output=X), 0))
    assert RULE.backward(moves, built, built.outputs[0], affine(C), 1) is None
    assert {value.name: found.is_scale for value, found, _ in moves.produced} == {
        shifted: False,
        "v0" if shifted == "v1" else "v1": True,
    }


@pytest.mark.parametrize("operation", [MUL, DIV])
def test_one_factor_takes_the_scale(operation: Arithmetic) -> None:
    built = at(operation, X, (2, C, 3, 1))
    moves = took(backward(built, affine(C, "scale"), 1))
    assert moves.asked == ["v0"]
    answer = backward(built, affine(C, "scale"), 1, ["v0"])
    if operation is DIV:
        assert reason(answer) == "too-far"
    else:
        assert took(answer).asked == ["v0", "v1"]


@pytest.mark.parametrize("operation", [MUL, DIV])
def test_two_factors_take_no_shift(operation: Arithmetic) -> None:
    assert refusal(backward(at(operation, X, X), affine(C, "shift"), 1)) == (
        NOT_LINEAR,
        f"{operation} 'n' multiplies two values and cannot take a shift",
    )


SHORT: list[tuple[object, object]] = [
    (X, (2, 1, 3, 5)),
    ((2, 1, 3, 5), X),
    (X, X[1:]),
    (X, None),
    (None, X),
    (X, ...),
    (..., X),
    (X, (2, None, 3, 5)),
]


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("operands", SHORT)
def test_operands_without_the_channels_stay(operands: tuple[object, object], operation: Arithmetic) -> None:
    assert refusal(backward(at(operation, *operands), affine(C, "scale"), 1)) == (
        NOT_PROVEN,
        f"the operands of {operation} 'n' do not both have the map's channels",
    )


def test_operands_without_the_axis_stay() -> None:
    assert reason(backward(at(ADD, (C,), (C,), output=(C,)), affine(C), 1)) == NOT_PROVEN
    assert reason(forward(at(ADD, (C,), (C,), output=(C,)), 0, affine(C), 1)) == NOT_PROVEN


@pytest.mark.parametrize("operation", ALL)
def test_a_value_with_itself_stays(operation: Arithmetic) -> None:
    x = Value("x", X)
    built = at(operation, x, x)
    assert reason(backward(built, affine(C, "scale"), 1)) == NOT_PROVEN
    assert reason(forward(built, 0, affine(C, "scale"), 1)) == NOT_PROVEN


# --- forward, two values -----------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("operation", SUMS)
@pytest.mark.parametrize("refused", ["", "out", "other", "both"])
def test_a_shift_goes_over_to_the_other_summand_or_on(refused: str, operation: Arithmetic, slot: int) -> None:
    other = f"v{1 - slot}"
    names = {"": [], "out": ["out"], "other": [other], "both": [other, "out"]}[refused]
    answer = forward(at(operation, X, (2, C, 3, 1)), slot, affine(C, "shift"), 1, names)
    if refused == "both":
        assert reason(answer) == "too-far"
        return
    moves = took(answer)
    assert bool(moves.consumed) == (refused == "other")
    assert bool(moves.produced) == (refused != "other")


@pytest.mark.parametrize("kind", ["both", "scale"])
@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("operation", SUMS)
def test_the_other_summand_takes_the_inverse_scale(operation: Arithmetic, slot: int, kind: str) -> None:
    built, found = at(operation, X, X), affine(C, kind)
    moves = took(forward(built, slot, found, 1))
    ((value, onto, axis),) = moves.produced
    assert (value.name, axis) == (f"v{1 - slot}", 1)
    np.testing.assert_allclose(onto.scale * found.scale, np.ones(C))
    assert onto.is_scale
    for refused in (f"v{1 - slot}", "out"):
        assert reason(forward(built, slot, found, 1, [refused])) == "too-far"


def test_a_scale_of_zero_cannot_be_taken_out_of_a_sum() -> None:
    found = Affine(np.array([1.0, 0.0, 2.0, 3.0]), np.ones(C))
    assert refusal(forward(at(ADD, X, X), 0, found, 1)) == (
        ILL,
        "a scale of 0 cannot be taken out of Add 'n'",
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("operation", [MUL, DIV])
def test_past_a_product_of_two_values(operation: Arithmetic, slot: int, kind: str) -> None:
    answer = forward(at(operation, X, (2, C, 3, 1)), slot, affine(C, kind), 1)
    if kind == "scale" and (operation is MUL or slot == 0):
        assert not took(answer).produced
    else:
        assert refusal(answer) == (
            NOT_LINEAR,
            f"{operation} 'n' combines two values and cannot pass a shift on",
        )


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("operands", SHORT)
def test_forward_between_operands_without_the_channels_stays(
    operands: tuple[object, object], operation: Arithmetic
) -> None:
    slot = 0 if operands[0] == X else 1
    assert reason(forward(at(operation, *operands), slot, affine(C, "scale"), 1)) == NOT_PROVEN


@pytest.mark.parametrize(
    ("data", "output"), [(X, None), (None, X), (..., X), (X[1:], X), ((C, 3, 5), X), (X, X[1:])]
)
def test_forward_from_data_of_another_rank_stays(data: object, output: Sequence[int] | None) -> None:
    for other in (X, np.ones((C, 1, 1))):
        built = at(MUL, data, other, output=output)
        assert refusal(forward(built, 0, affine(C, "scale"), 1)) == (
            NOT_PROVEN,
            "the operands of Mul 'n' are not of one known rank",
        )


def test_a_constant_that_is_no_constant_is_a_value() -> None:
    """An initializer that a caller may feed: neither way may take its numbers for granted."""
    fed = Value("fed", X, not_constant=Refusal(Reason.OVERRIDABLE, "fed"))
    moves = took(forward(at(MUL, X, fed), 0, affine(C, "scale"), 1))
    assert not moves.constants
    moves = took(backward(at(ADD, X, fed), affine(C), 1))
    assert [value.name for value, _, _ in moves.produced] == ["v0", "fed"]
