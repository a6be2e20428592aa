"""Which nodes are affine maps, along which axis, and which are left alone. Views are built by hand."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.views import Graph, node_of, numbers

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.mean import Mean
from convbn.fuse.plan.maps import affine_of, data_slot
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.op import Op, Other

NAMES = ("scale γ", "shift β", "mean μ", "variance σ²")


@pytest.fixture
def graph() -> Graph:
    return Graph()


def batchnorm(graph: Graph, op: BatchNorm | None = None, **more: Any) -> Node:
    """γ = 2, β = 3, μ = 4, σ² + ε = 25."""
    parameters = [numbers(4, fill=fill) for fill in (2, 3, 4, 24)]
    return node_of(graph.add("bn", op or BatchNorm(1.0), graph.x, *parameters, **more))


def found(node: Node) -> tuple[Affine, int]:
    result = affine_of(node)
    assert not isinstance(result, Refusal), result
    return result


def of(result: object, reason: Reason, says: str = "") -> None:
    assert isinstance(result, Refusal)
    assert result.reason is reason
    assert says in result.detail


# --- BatchNorm ---------------------------------------------------------------------------------------


def test_a_batchnorm(graph: Graph) -> None:
    affine, axis = found(batchnorm(graph))
    np.testing.assert_allclose(affine.scale, 0.4)
    np.testing.assert_allclose(affine.shift, 3 - 4 * 0.4)
    assert axis == 1
    assert found(batchnorm(graph, BatchNorm(1.0, channel_axis=3)))[1] == 3


@pytest.mark.parametrize(("gamma", "beta"), [(False, True), (True, False), (False, False)])
def test_a_batchnorm_without_gamma_or_beta(graph: Graph, gamma: bool, beta: bool) -> None:
    node = batchnorm(graph)
    node.inputs[1] = node.inputs[1] if gamma else None
    node.inputs[2] = node.inputs[2] if beta else None
    affine, _ = found(node)
    scale = (2 if gamma else 1) / 5
    np.testing.assert_allclose(affine.scale, scale)
    np.testing.assert_allclose(affine.shift, (3 if beta else 0) - 4 * scale)


@pytest.mark.parametrize("slot", [3, 4])
def test_without_statistics(graph: Graph, slot: int) -> None:
    node = batchnorm(graph)
    node.inputs[slot] = None
    of(affine_of(node), Reason.PARAMETERS_MALFORMED, "no running mean or no running variance")


@pytest.mark.parametrize("slot", [1, 2, 3, 4])
def test_a_parameter_that_is_fed(graph: Graph, slot: int) -> None:
    node = batchnorm(graph)
    node.inputs[slot] = Value("v", (4,))
    of(
        affine_of(node),
        Reason.PARAMETERS_NOT_CONSTANT,
        f"the {NAMES[slot - 1]} 'v' of BatchNorm 'bn' is an input of the model",
    )
    why = Refusal(Reason.OVERRIDABLE, "the caller may")
    node.inputs[slot] = Value("v", (4,), not_constant=why)
    assert affine_of(node) is why


def test_in_training(graph: Graph) -> None:
    of(affine_of(batchnorm(graph, BatchNorm(1.0, training=True))), Reason.TRAINING_MODE)


@pytest.mark.parametrize("use", ["read", "seen"])
@pytest.mark.parametrize("index", [1, 2])
def test_further_outputs(graph: Graph, index: int, use: str) -> None:
    node = batchnorm(graph, outputs=3)
    found(node)
    node.outputs[index].name = "running"
    if use == "read":
        node.outputs[index].readers.append(Reader(node, 0))
    else:
        node.outputs[index].observed = "an output"
    of(affine_of(node), Reason.EXTRA_OUTPUTS, "further outputs are used: running")


@pytest.mark.parametrize("which", ["input", "output"])
def test_no_axis_of_channels(graph: Graph, which: str) -> None:
    node = batchnorm(graph, outputs=2)
    value = node.inputs[0] if which == "input" else node.outputs[0]
    assert value is not None
    node.outputs[1].shape = ()
    value.shape = None
    found(node)
    value.shape = (1, 4)
    found(node)
    value.shape = (4,)
    of(affine_of(node), Reason.PARAMETERS_MALFORMED, "no axis of channels")
    node.inputs[0] = None
    assert isinstance(affine_of(node), Refusal) == (which == "output")


def test_statistics_that_make_no_map(graph: Graph) -> None:
    of(affine_of(batchnorm(graph, BatchNorm(-24.0))), Reason.BAD_STATISTICS)


def test_what_is_no_map_at_all(graph: Graph) -> None:
    with pytest.raises(TypeError, match="Conv 'c' is not an affine map"):
        affine_of(node_of(graph.conv("c", graph.x)))


# --- sums and products -------------------------------------------------------------------------------

VECTOR = np.float32([1, 2, 4, 8]).reshape(4, 1, 1)


def elementwise(graph: Graph, operation: Arithmetic, constant: np.ndarray, *, first: bool = False) -> Node:
    operands: list[Value | Constant] = [graph.x, Constant.of(constant)]
    return node_of(graph.add("m", Elementwise(operation), *(operands[::-1] if first else operands)))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("operation", Arithmetic)
def test_with_one_number_a_channel(graph: Graph, operation: Arithmetic, first: bool) -> None:
    node = elementwise(graph, operation, VECTOR, first=first)
    assert data_slot(node) == int(first)
    if operation is Arithmetic.DIVIDE and first:
        of(affine_of(node), Reason.NOT_PER_CHANNEL, "Div 'm' is no map of one value")
        return
    affine, axis = found(node)
    assert axis == 1
    functions = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    x, c = np.full(4, 3.0), VECTOR.reshape(-1).astype("f8")
    expected = functions[operation](*((c, x) if first else (x, c)))
    np.testing.assert_allclose(affine.scale * x + affine.shift, expected)
    assert affine.is_scale == (operation in ("Mul", "Div"))


@pytest.mark.parametrize(
    ("shape", "constant", "axis"),
    [
        ((2, 4, 3, 3), (), 1),
        ((2, 4, 3, 3), (1, 1, 1, 1), 1),
        ((2, 4, 3, 3), (2, 1, 1, 1), 0),
        ((2, 4, 3, 3), (3,), 3),
        ((2, 4), (4,), 1),
        ((4,), (), 0),
        ((4,), (4,), 0),
        ((None, 4, None, None), (4, 1, 1), 1),
    ],
)
def test_the_axis_is_the_one_along_which_the_constant_varies(
    graph: Graph, shape: tuple[int | None, ...], constant: tuple[int, ...], axis: int
) -> None:
    graph.x.shape = shape
    node = elementwise(graph, Arithmetic.ADD, np.full(constant, 2, "f4"))
    node.outputs[0].shape = shape
    affine, where = found(node)
    assert where == axis
    np.testing.assert_array_equal(affine.shift, [2] * (shape[axis] or 0))


@pytest.mark.parametrize(
    ("data", "output", "constant"),
    [
        (None, (1, 4, 3, 3), (4, 1, 1)),
        ((1, 4, 3, 3), None, (4, 1, 1)),
        ((), (), ()),
        ((4, 4, 3), (1, 4, 4, 3), (1, 4, 1, 1)),
        ((1, None, 3, 3), (1, 4, 3, 3), (4, 1, 1)),
        ((1, 1, 3, 3), (1, 4, 3, 3), (4, 1, 1)),
        ((1, 4, 3, 3), (1, 4, 3, 3), (4, 3, 1)),
        ((1, 4, 3, 3), (1, 4, 3, 3), (2, 1, 1)),
    ],
)
def test_shapes_that_prove_no_axis(graph: Graph, data: Any, output: Any, constant: tuple[int, ...]) -> None:
    graph.x.shape = data
    node = elementwise(graph, Arithmetic.MULTIPLY, np.full(constant, 2, "f4"))
    node.outputs[0].shape = output
    of(affine_of(node), Reason.NOT_PER_CHANNEL, "Mul 'm'")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(graph: Graph, bad: float) -> None:
    of(
        affine_of(elementwise(graph, Arithmetic.ADD, np.float32([1, 2, bad, 4]).reshape(4, 1, 1))),
        Reason.NOT_PER_CHANNEL,
    )


def test_division_by_zero(graph: Graph) -> None:
    of(affine_of(elementwise(graph, Arithmetic.DIVIDE, VECTOR - 1)), Reason.NOT_PER_CHANNEL)
    assert not found(elementwise(graph, Arithmetic.MULTIPLY, VECTOR - 1))[0].scale[0]


def test_bfloat16(graph: Graph) -> None:
    affine, _ = found(elementwise(graph, Arithmetic.ADD, VECTOR.astype(ml_dtypes.bfloat16)))
    assert (affine.shift == VECTOR.astype(ml_dtypes.bfloat16).astype(np.float64).ravel()).all()


@pytest.mark.parametrize("dtype", ["i4", "u1", ml_dtypes.float8_e4m3fn])
def test_other_types(graph: Graph, dtype: Any) -> None:
    of(affine_of(elementwise(graph, Arithmetic.ADD, VECTOR.astype(dtype))), Reason.NOT_PER_CHANNEL)


def test_operands_that_are_missing_both_flow_or_both_do_not(graph: Graph) -> None:
    y = graph.add("y", Other("op"), graph.x)
    for operands in ([graph.x, y], [numbers(4, 1, 1), numbers(4, 1, 1)], [None, numbers(4, 1, 1)], [graph.x]):
        node = node_of(graph.add("m", Elementwise(Arithmetic.ADD), *operands))
        of(affine_of(node), Reason.NOT_PER_CHANNEL)


def test_where_the_data_comes_in(graph: Graph) -> None:
    """Only a sum or product may have it second."""
    over_a_constant = graph.add("b", BatchNorm(1.0), numbers(1, 4, 3, 3), *(numbers(4) for _ in range(4)))
    assert data_slot(node_of(over_a_constant)) == 0
    assert data_slot(node_of(graph.add("m", Elementwise(Arithmetic.ADD), None, numbers(4)))) == 0


# --- the end of a LayerNorm --------------------------------------------------------------------------

ADD, MUL, DIV, SUB = (
    Elementwise(o) for o in (Arithmetic.ADD, Arithmetic.MULTIPLY, Arithmetic.DIVIDE, Arithmetic.SUBTRACT)
)
LAST = np.float32([1, 2, 4])
"""One number a position of the last axis."""


def written_out(
    graph: Graph, *, steps: int = 3, axes: tuple[int, ...] = (3,), combines: Op = DIV, gamma: Op | None = None
) -> Node:
    """``x / √(mean(x²) + ε)`` with so many operators between mean and quotient, then γ if asked, then a sum."""
    value = graph.add("mean", Mean(axes, 4, True), graph.add("square", MUL, graph.x, graph.x))
    for i in range(steps):
        value = graph.add(f"step{i}", Other("op"), value)
    value = graph.add("quotient", combines, graph.x, value)
    if gamma is not None:
        value = graph.add("gamma", gamma, value, Constant.of(LAST))
    return node_of(graph.add("beta", ADD, value, Constant.of(LAST)))


@pytest.mark.parametrize("gamma", [None, MUL, ADD])
@pytest.mark.parametrize("combines", [DIV, MUL])
def test_the_end_of_a_layernorm_is_left_alone(graph: Graph, combines: Op, gamma: Op | None) -> None:
    of(affine_of(written_out(graph, combines=combines, gamma=gamma)), Reason.NOT_PER_CHANNEL)


def test_gamma_on_the_left(graph: Graph) -> None:
    node = written_out(graph)
    quotient = node.inputs[0]
    assert quotient is not None
    left = graph.add("gamma", MUL, Constant.of(LAST), quotient)
    of(affine_of(node_of(graph.add("y", ADD, left, Constant.of(LAST)))), Reason.NOT_PER_CHANNEL)


@pytest.mark.parametrize("operand", [0, 1])
def test_the_mean_is_found_on_either_side(graph: Graph, operand: int) -> None:
    mean = graph.add("mean", Mean((3,), 4, True), graph.x)
    twice = graph.add("twice", Other("op"), graph.x, graph.x, None)
    operands = [graph.add("tail", Other("op"), twice, None, twice), graph.add("op", Other("op"), mean, None)]
    quotient = graph.add("q", MUL, *(operands if operand else operands[::-1]))
    of(affine_of(node_of(graph.add("y", ADD, quotient, Constant.of(LAST)))), Reason.NOT_PER_CHANNEL)


@pytest.mark.parametrize(("steps", "alone"), [(8, True), (9, False)])
def test_a_mean_further_away_is_another_matter(graph: Graph, steps: int, alone: bool) -> None:
    assert isinstance(affine_of(written_out(graph, steps=steps)), Refusal) == alone


@pytest.mark.parametrize("axes", [(2,), (0, 1)])
def test_a_mean_over_other_axes_is_none(graph: Graph, axes: tuple[int, ...]) -> None:
    """Nor is anything looked for behind it."""
    graph.x = graph.add("before", Mean((3,), 4, True), graph.x)
    graph.x.constant = None
    square = graph.add("square", Other("op"), graph.x)
    value = graph.add("mean", Mean(axes, 4, True), square)
    y = Value("y", (1, 4, 3, 3))
    quotient = graph.add("q", DIV, y, value)
    assert found(node_of(graph.add("beta", ADD, quotient, Constant.of(LAST))))[1] == 3


def test_a_mean_over_other_axes_does_not_end_the_search(graph: Graph) -> None:
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        means = [graph.add(f"{name}{axis}", Mean((axis,), 4, True), graph.x) for axis in (2, 3)]
        quotient = graph.add(f"{name}q", DIV, *(means[i] for i in order))
        of(
            affine_of(node_of(graph.add(f"{name}y", ADD, quotient, Constant.of(LAST)))),
            Reason.NOT_PER_CHANNEL,
        )


def test_along_another_axis_than_the_last_it_is_a_map(graph: Graph) -> None:
    node = written_out(graph, axes=(1,))
    value = node.inputs[0]
    assert value is not None
    assert found(node_of(graph.add("y", ADD, value, Constant.of(VECTOR))))[1] == 1


@pytest.mark.parametrize("combines", [ADD, SUB, Other("op")])
def test_what_does_not_divide_by_a_norm_is_a_map(graph: Graph, combines: Op) -> None:
    assert found(written_out(graph, combines=combines))[1] == 3


def test_two_numbers_of_one_value_behind_it_are_maps(graph: Graph) -> None:
    """γ, β and another β: only the first two are the pattern's."""
    first = written_out(graph, gamma=MUL).outputs[0]
    assert found(node_of(graph.add("more", ADD, first, Constant.of(LAST))))[1] == 3


def test_what_has_no_data_has_no_norm(graph: Graph) -> None:
    value = graph.add("odd", ADD, None, Constant.of(LAST))
    assert found(node_of(graph.add("y", ADD, value, Constant.of(LAST))))[1] == 3


def test_a_diamond_of_sums_is_searched_once(graph: Graph) -> None:
    """Each step reads the last one twice; nothing is a mean."""
    value = graph.x
    for i in range(8):
        value = graph.add(f"s{i}", Other("op"), *[value] * 12)
    quotient = graph.add("q", MUL, value, graph.x)
    assert found(node_of(graph.add("y", ADD, quotient, Constant.of(LAST))))[1] == 3
