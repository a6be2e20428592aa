"""The rule for sums of several values, and what is read as a function of constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.rule_laws import Moves, affine, node

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.function import Function
from convbn.fuse.operators.registry import evaluator_of, onnx_readers, rule_for
from convbn.fuse.operators.sum import Sum
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value

SHAPE = (2, 3, 4)


def terms(*shapes: Any, divisor: int = 1) -> Node:
    (read,) = onnx_readers("Mean" if divisor > 1 else "Sum")
    values = [Value(f"v{i}", shape) for i, shape in enumerate(shapes)]
    op = read(OnnxCall("Mean" if divisor > 1 else "Sum", 20, {}, values, [Value("out", SHAPE)]))
    assert isinstance(op, Sum)
    return node(op, *shapes, output=SHAPE)


def moved(at: Node, by: Affine, slot: int | None = None, refused: Any = ()) -> Moves | Refusal:
    moves, rule = Moves(refused), rule_for(at.op)
    assert rule is not None
    assert rule.backward is not None
    assert rule.forward is not None
    backward, forward, output = rule.backward, rule.forward, at.outputs[0]
    answer = backward(moves, at, output, by, 1) if slot is None else forward(moves, at, slot, by, 1)
    return moves if answer is None else answer


@pytest.mark.parametrize("divisor", [1, 3])
@pytest.mark.parametrize("slot", [None, 0, 2])
def test_the_law_in_float64(slot: int | None, divisor: int) -> None:
    """One term takes the shift, as often as the mean divides by; in front the others take the inverse scale."""
    by, at = affine(3), terms(SHAPE, SHAPE, SHAPE, divisor=divisor)
    moves = moved(at, by, slot)
    assert isinstance(moves, Moves), moves
    rng = np.random.default_rng(0)
    before = [rng.standard_normal(SHAPE) for _ in range(3)]
    after = list(before)

    def mapped(found: Affine, data: np.ndarray) -> np.ndarray:
        return found.scale[:, None] * data + found.shift[:, None]

    for value, found, axis in moves.produced:
        index = at.inputs.index(value)
        assert axis == 1
        after[index] = mapped(found, after[index])
    result = sum(after) / divisor
    if slot is None:
        np.testing.assert_allclose(result, mapped(by, sum(before) / divisor), rtol=1e-12, atol=1e-14)
        return
    ((_, onward, _),) = moves.consumed
    before[slot] = mapped(by, before[slot])
    np.testing.assert_allclose(mapped(onward, result), sum(before) / divisor, rtol=1e-12, atol=1e-14)


def test_what_a_term_refuses_ends_it() -> None:
    for name in ("v0", "v1", "v2"):
        answer = moved(terms(SHAPE, SHAPE, SHAPE), affine(3), None, [name])
        assert isinstance(answer, Refusal)
    assert isinstance(moved(terms(SHAPE, SHAPE, SHAPE), affine(3), 0, ["v2"]), Refusal)


def test_of_many_terms_two_at_most_are_asked_to_carry_the_shift() -> None:
    """Each time all terms are asked, of which there may be thousands."""
    moves, at, rule = Moves(["v3"]), terms(SHAPE, SHAPE, SHAPE, SHAPE), rule_for(Sum("Sum", 1))
    assert rule is not None
    assert rule.backward is not None
    assert isinstance(rule.backward(moves, at, at.outputs[0], affine(3), 1), Refusal)
    assert moves.asked == ["v0", "v1", "v2", "v3"] * 2


def test_a_scale_of_zero_cannot_be_taken_out() -> None:
    by = Affine.scale_by(np.array([1.0, 0.0, 2.0]))
    answer = moved(terms(SHAPE, SHAPE, SHAPE), by, 0)
    assert isinstance(answer, Refusal)
    assert (answer.reason, "a scale of 0 cannot be taken out of" in answer.detail) == (
        Reason.ILL_CONDITIONED,
        True,
    )


@pytest.mark.parametrize("slot", [None, 0])
def test_terms_of_other_channels_stay(slot: int | None) -> None:
    answer = moved(terms(SHAPE, SHAPE, (2, 1, 4)), affine(3), slot)
    assert isinstance(answer, Refusal)
    assert "do not all have the map's channels" in answer.detail


def constant(array: Any) -> Value:
    array = np.asarray(array)
    return Value("c", array.shape, constant=Constant.of(array))


@pytest.mark.parametrize(
    ("attributes", "axes", "expected"),
    [
        ({}, None, Function("ReduceL2")),
        ({"keepdims": 0}, [0, -1], Function("ReduceL2", (0, 1), keepdims=False)),
        ({"noop_with_empty_axes": 1}, None, None),
        ({}, [2], None),
        ({}, "fed", None),
    ],
)
def test_which_norms_of_constants_are_read(attributes: dict[str, Any], axes: Any, expected: Any) -> None:
    (read, *_) = onnx_readers("ReduceL2")
    inputs = [constant(np.ones((2, 3), "f4"))]
    if axes is not None:
        inputs.append(Value("axes", (1,)) if axes == "fed" else constant(np.int64(axes)))
    assert read(OnnxCall("ReduceL2", 18, attributes, inputs, [Value("y")])) == expected
    assert read(OnnxCall("ReduceL2", 18, attributes, [Value("x", (2, 3))], [Value("y")])) is None


@pytest.mark.parametrize(
    ("operands", "shape"),
    [
        ((np.ones((2, 3), "f4"), np.float32(2)), (2, 3)),
        ((np.ones((2, 3), "f4"),), None),
        ((np.ones((2, 3), "f4"), np.ones((2, 2), "f4")), None),
        ((np.ones((2, 3), "i4"), np.ones((), "i4")), None),
        ((None, np.float32(2)), None),
    ],
)
def test_powers_of_constants(operands: tuple[Any, ...], shape: Any) -> None:
    evaluate = evaluator_of(Function("Pow"))
    assert evaluate is not None
    known = [None if operand is None else Constant.of(np.asarray(operand)) for operand in operands]
    found = evaluate(Function("Pow"), known)
    assert (None if found is None else found[0]) == shape
    if found is not None:
        assert (found[1]() == 1).all()
