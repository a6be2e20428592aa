"""The rule for products by letters, ``W @ x`` and Einsum: the law on both sides, every refusal, what is read as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run
from support.rule_laws import affine, backward, forward, node, reason, refusal, took

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.fold import fold
from convbn.fuse.operators.contraction import Contraction, _left_product
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node

SIZES = dict(zip("nchwoabk", (2, 3, 4, 5, 6, 2, 3, 4), strict=True))
KINDS = ["both", "scale", "shift"]


def shape(letters: str) -> tuple[int, ...]:
    return tuple(SIZES[letter] for letter in letters)


def product(equation: str, *bias: Any, slot: int = 0, weight: Any = None) -> Node:
    """A product with its weight at ``slot``; the sizes are those of the letters."""
    terms, output = equation.split("->")
    letters = terms.split(",")
    stored = random(*shape(letters[slot])) if weight is None else weight
    operands: list[Any] = [shape(letters[1 - slot])]
    operands.insert(slot, stored)
    op = Contraction("Einsum", slot, letters[slot], letters[1 - slot], output)
    return node(op, *operands, *bias, output=shape(output))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("equation", "slot", "axis"),
    [
        ("oc,nch->noh", 0, 1),
        ("nch,co->noh", 1, 1),
        ("oc,nc->no", 0, 1),
        ("oc,c->o", 0, 0),
        ("hc,nchw->nhcw", 0, 1),
        ("oc,nch->onh", 0, 0),
        ("c,nc->nc", 0, 1),
    ],
)
def test_behind_along_an_axis_of_the_weight(equation: str, slot: int, axis: int, kind: str) -> None:
    built = product(equation, slot=slot)
    moves = took(backward(built, affine(SIZES[equation.split("->")[1][axis]], kind), axis))
    assert set(moves.constants) == ({slot} if kind != "shift" else set()) | (
        {2} if kind != "scale" else set()
    )
    assert all(constant.array().dtype == np.float32 for constant in moves.constants.values())
    assert not moves.produced


@pytest.mark.parametrize("bias", [[], [random(6, 1)], [random(6, 4)], [random(1, 6, 1)], [random(1)]])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_takes_the_map(kind: str, bias: list[Any]) -> None:
    moves = took(backward(product("oc,nch->noh", *bias), affine(6, kind), 1))
    assert (2 in moves.constants) == (bool(bias) or kind != "scale")


@pytest.mark.parametrize("kind", KINDS)
def test_behind_along_an_axis_of_the_data_the_scale_goes_on(kind: str) -> None:
    built = product("oc,nch->noh")
    moves = took(backward(built, affine(4, kind), 2))
    assert set(moves.constants) == ({2} if kind != "scale" else set())
    ((value, found, axis),) = moves.produced
    assert (value, axis) == (built.inputs[1], 2)
    assert found.is_scale
    np.testing.assert_array_equal(found.scale, affine(4, kind).scale)


def test_a_scale_goes_on_where_the_weight_is_not_known() -> None:
    """A graph network's adjacency may be an input of the model."""
    at = node(Contraction("mm", 0, "ac", "ch", "ah"), (2, 3), (3, 4), output=(2, 4))
    assert took(backward(at, affine(4, "scale"), 1)).produced
    for kind, axis, channels in (("both", 1, 4), ("scale", 0, 2)):
        assert refusal(backward(at, affine(channels, kind), axis)) == (
            "weight-not-constant",
            "the constant 'v0' of mm 'n' is an input of the model",
        )
    for kind in KINDS:
        assert reason(forward(at, 1, affine(3, kind), 0)) == "weight-not-constant"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [[], [random(6, 1)], [random(6, 4)]])
def test_in_front_along_an_axis_of_the_weight(bias: list[Any], kind: str) -> None:
    moves = took(forward(product("oc,nch->noh", *bias), 1, affine(3, kind), 1))
    assert set(moves.constants) == ({0} if kind != "shift" else set()) | ({2} if kind != "scale" else set())
    assert not moves.consumed


def test_in_front_along_an_axis_that_both_keep() -> None:
    for kind in KINDS:
        took(forward(product("hc,nchw->nchw"), 1, affine(3, kind), 1))


def test_in_front_along_an_axis_of_the_data_alone() -> None:
    built = product("oc,nch->noh")
    moves = took(forward(built, 1, affine(4, "scale"), 2))
    assert not moves.constants
    assert [axis for _, _, axis in moves.consumed] == [2]
    assert refusal(forward(built, 1, affine(4, "shift"), 2)) == (
        "producer-not-foldable",
        "Einsum 'n' passes a scale on, and no shift",
    )


@pytest.mark.parametrize("bias", [random(6, 1), random(6, 4), random(2, 6, 4)])
def test_a_scale_that_goes_on_is_taken_out_of_the_bias(bias: np.ndarray) -> None:
    moves = took(forward(product("oc,nch->noh", bias), 1, affine(4, "scale"), 2))
    assert set(moves.constants) == {2}
    assert reason(forward(product("oc,nch->noh", bias), 1, affine(4, "scale"), 2, [2])) == "too-far"
    zero = Affine.scale_by(np.array([1.0, 0.0, 2.0, 3.0]))
    assert refusal(forward(product("oc,nch->noh", bias), 1, zero, 2)) == (
        "ill-conditioned",
        "a scale of 0 cannot be taken out of Einsum 'n'",
    )


def test_a_constant_goes_on_where_it_would_be_an_addition_and_lies_along_one_axis() -> None:
    """Along two, or beside a bias that is there already, it is added here."""
    for equation, bias, onward in (
        ("oc,nch->noh", [], True),
        ("oac,nc->ona", [], False),
        ("oc,nch->noh", [random(6, 1)], False),
    ):
        built = product(equation, *bias)
        built.adds = frozenset({2})
        moves = took(forward(built, 1, affine(3), 1))
        assert (bool(moves.consumed), 2 in moves.constants) == (onward, not onward), equation


@pytest.mark.parametrize("outputs", [1, 6])
def test_an_addition_along_the_last_axis_is_a_vector(outputs: int) -> None:
    at = node(Contraction("mm", 0, "oc", "nc", "no"), random(outputs, 3), (2, 3), output=(2, outputs))
    assert took(backward(at, affine(outputs), 1)).constants[2].shape == (outputs,)


def test_what_is_summed_over_takes_no_shift_with_it() -> None:
    """``Σ_h`` of a shift is as many times it as there are positions."""
    built = product("oc,nch->no")
    took(forward(built, 1, affine(3, "scale"), 1))
    assert reason(forward(built, 1, affine(3, "shift"), 1)) == "producer-not-foldable"
    assert refusal(forward(built, 1, affine(4, "scale"), 2)) == (
        "producer-not-foldable",
        "Einsum 'n' adds up the BatchNorm's channels",
    )


def test_other_axes_and_slots_are_not_its() -> None:
    built = product("oc,nch->noh")
    assert reason(backward(built, affine(6), 3)) == "axis-not-proven"
    assert reason(forward(built, 1, affine(6), 3)) == "axis-not-proven"
    assert reason(forward(built, 0, affine(6), 0)) == "axis-not-proven"


def test_other_sizes_stay() -> None:
    built = product("oc,nch->noh")
    assert refusal(backward(built, affine(5), 1)) == (
        "parameters-malformed",
        "Einsum 'n' has 6 output channels and the BatchNorm 5",
    )
    for kind in KINDS:
        assert refusal(forward(built, 1, affine(5, kind), 1)) == (
            "parameters-malformed",
            "Einsum 'n' has 3 input channels and the BatchNorm 5",
        )


def test_a_bias_of_the_run_stays() -> None:
    built = product("oc,nch->noh", (6, 4))
    for kind in ("both", "scale"):
        assert reason(backward(built, affine(6, kind), 1)) == "weight-not-constant"
    assert reason(forward(built, 1, affine(4, "scale"), 2)) == "weight-not-constant"
    assert reason(forward(built, 1, affine(3), 1)) == "weight-not-constant"


@pytest.mark.parametrize("slot", [0, 2])
def test_what_cannot_be_set_ends_it(slot: int) -> None:
    assert reason(backward(product("oc,nch->noh"), affine(6), 1, [slot])) == "too-far"
    assert reason(forward(product("oc,nch->noh"), 1, affine(3), 1, [slot])) == "too-far"


def test_what_the_neighbours_refuse_ends_it() -> None:
    assert reason(backward(product("oc,nch->noh"), affine(4), 2, ["v1"])) == "too-far"
    assert reason(forward(product("oc,nch->noh"), 1, affine(4, "scale"), 2, ["out"])) == "too-far"


def test_half_precision_that_would_overflow_stays() -> None:
    large = np.full((6, 3), 6e4, "f2")
    assert reason(backward(product("oc,nch->noh", weight=large), affine(6, "scale"), 1)) == "out-of-range"
    shift = Affine.shift_by(np.ones(3))
    assert reason(forward(product("oc,nch->noh", weight=large), 1, shift, 1)) == "out-of-range"


@st.composite
def products(draw: Any) -> tuple[str, int]:
    """An equation of a weight and data with letters in common, alone, kept and summed, and the weight's slot."""
    own, alone, shared = (draw(st.permutations(pool)) for pool in ("oa", "nhw", "ck"))
    weight = [*own[: draw(st.integers(0, 2))], *shared[: draw(st.integers(1, 2))]]
    data = [*alone[: draw(st.integers(1, 3))], *shared[: draw(st.integers(1, 2))]]
    both = list(dict.fromkeys(weight + data))
    output = draw(st.permutations(both))[: draw(st.integers(1, len(both)))]
    terms = ["".join(draw(st.permutations(letters))) for letters in (weight, data)]
    slot = draw(st.integers(0, 1))
    return ",".join(terms if slot == 0 else terms[::-1]) + "->" + "".join(output), slot


@settings(max_examples=150, deadline=None, derandomize=True)
@given(products(), st.sampled_from(KINDS), st.booleans(), st.integers(0, 4))
def test_whatever_the_letters_the_law_holds(
    drawn: tuple[str, int], kind: str, biased: bool, place: int
) -> None:
    """``backward`` and ``forward`` hold what they took against float64; what they refuse has a reason of theirs."""
    (equation, slot), output = drawn, drawn[0].split("->")[1]
    data = equation.split("->")[0].split(",")[1 - slot]
    bias = [random(*shape(output), seed=3)] if biased else []
    axis = place % len(output)
    took(backward(product(equation, *bias, slot=slot), affine(SIZES[output[axis]], kind), axis))
    axis = place % len(data)
    answer = forward(product(equation, *bias, slot=slot), 1 - slot, affine(SIZES[data[axis]], kind), axis)
    weight = equation.split("->")[0].split(",")[slot]
    summed = set(data) - set(weight) - set(output)
    onward = data[axis] not in weight
    refused = data[axis] in summed or (kind != "scale" and (onward or bool(summed)))
    assert isinstance(answer, Refusal) is refused, answer


# --- what is read as a product -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equation", "data", "weight", "folds"),
    [
        ("oc, nchw -> nohw", (2, 4, 3, 3), (6, 4), True),
        ("nchw,oc->nohw", (2, 4, 3, 3), (6, 4), True),
        ("oc,...c->...o", (2, 4), (6, 4), False),
        ("oc,nc", (2, 4), (6, 4), False),
        ("cc,nc->nc", (2, 4), (4, 4), False),
        ("oc,nn->no", (4, 4), (6, 4), False),
        ("nc,nc,oc->no", (2, 4), (6, 4), False),
        ("oc,nc->no", (2, 4), (6, 1), False),
    ],
)
def test_which_einsums_are_products(
    equation: str, data: Sequence[int], weight: Sequence[int], folds: bool
) -> None:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    names = ["w" if "o" in term or term == "cc" else "x" for term in terms]
    channels = 4 if equation.startswith("cc") else 6
    built = model(
        [helper.make_node("Einsum", names, ["c"], equation=equation), batchnorm("c", "y")],
        {"x": data},
        ["y"],
        {"w": random(*weight), **batchnorm_parameters(channels)},
    )
    result = fold(built)
    assert ("BatchNormalization" not in operators(result.model)) is folds
    if folds:
        assert operators(result.model) == ["Einsum", "Add"]
    feeds = {"x": random(*data, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_two_values_are_no_product_with_a_constant() -> None:
    nodes = [helper.make_node("Einsum", ["x", "x"], ["c"], equation="nc,nd->cd"), batchnorm("c", "y")]
    built = model(nodes, {"x": [5, 6]}, ["y"], batchnorm_parameters(6))
    (kept,) = fold(built).report.kept
    assert (kept.reason, "Einsum" in kept.detail) == ("producer-not-foldable", True)


@pytest.mark.parametrize(
    ("weight", "data", "folds"),
    [
        ((6, 4), (2, 4, 6), True),
        ((6, 4), (4, 6), False),
        ((2, 6, 4), (2, 4, 6), True),
        ((1, 6, 4), (2, 4, 6), False),
        ((6, 4), None, False),
    ],
)
def test_which_products_from_the_left(weight: Sequence[int], data: Sequence[int] | None, folds: bool) -> None:
    """A matrix from the left, over data of a known rank; of a matrix the BatchNorm normalises what x gives."""
    nodes = [
        *([helper.make_node("Reshape", ["x", "to"], ["d"])] if data is None else []),
        helper.make_node("MatMul", ["w", "x" if data else "d"], ["c"]),
        batchnorm("c", "y"),
    ]
    given_shape = data or (2, 4, 6)
    built = model(nodes, {"x": given_shape}, ["y"], {"w": random(*weight), **batchnorm_parameters(6)})
    if data is None:
        built.graph.input.append(helper.make_tensor_value_info("to", TensorProto.INT64, ["rank"]))
    result = fold(built)
    assert ("BatchNormalization" not in operators(result.model)) is folds
    feeds = {"x": random(*given_shape, seed=7)} | ({} if data else {"to": np.int64([2, 4, 6])})
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_of_more_axes_than_it_has_letters_it_is_none() -> None:
    last = _left_product("MatMul", (6, 4), (*[1] * 18, 4, 3))
    assert last is not None
    assert len(set(last.output)) == len(set(last.data)) == 20
    assert _left_product("MatMul", (6, 4), (*[1] * 19, 4, 3)) is None


def test_what_a_product_gained_is_divided_by_a_scale_that_goes_past_it() -> None:
    """The BatchNorm leaves an addition in front of which a scale along another axis leaves for the next layer."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "c"], ["m"]),
        helper.make_node("MatMul", ["w", "m"], ["p"]),
        batchnorm("p", "n"),
        helper.make_node("MatMul", ["n", "k"], ["y"]),
    ]
    stored = {"c": np.float32([2, 0.5, 3]), "w": random(6, 4), "k": random(3, 5), **batchnorm_parameters(6)}
    built = model(nodes, {"x": [2, 4, 3]}, ["y"], stored)
    result = fold(built)
    assert operators(result.model) == ["Sigmoid", "MatMul", "Add", "MatMul"]
    feeds = {"x": random(2, 4, 3, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
