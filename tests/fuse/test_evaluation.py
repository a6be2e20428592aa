"""What constants give, operator by operator, and the edits that store it. Views are built by hand."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.graphs import random
from support.views import Graph, node_of, numbers

from convbn.fuse.operators import evaluation
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.dequantize import Dequantize
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.evaluation import evaluated
from convbn.fuse.operators.function import Function
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.mean import Mean
from convbn.fuse.operators.negation import Negation
from convbn.fuse.operators.registry import OF_CONSTANTS
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.evaluation import evaluate
from convbn.fuse.plan.planner import make_plan
from convbn.fuse.plan.ways import Fold
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.edits import Evaluate
from convbn.fuse.view.op import Op, Other
from convbn.fuse.view.view import View

ADD = Elementwise(Arithmetic.ADD)
DIVIDE = Elementwise(Arithmetic.DIVIDE)


def values(*arrays: np.ndarray | None) -> list[Value | None]:
    return [
        None if a is None else Value(str(i), a.shape, constant=Constant.of(a)) for i, a in enumerate(arrays)
    ]


def found(op: Op, *arrays: np.ndarray | None) -> Constant:
    constant = evaluated(op, values(*arrays))
    assert constant is not None
    assert constant.exact().dtype == np.float64
    assert constant.exact().shape == constant.shape == constant.array().shape
    assert constant.array().dtype == constant.dtype
    return constant


# --- what several ask for ----------------------------------------------------------------------------


def test_what_several_constants_ask_for_is_computed_once() -> None:
    """A weight less its mean over the root of its mean square: the weight is asked for six times."""
    reads: list[str] = []
    numbers = random(4, 3)

    def load() -> np.ndarray:
        reads.append("w")
        return numbers

    def constant(op: Op, *inputs: Constant) -> Constant:
        made = evaluated(op, [Value(str(i), c.shape, constant=c) for i, c in enumerate(inputs)])
        assert made is not None
        return made

    weight = Constant(numbers.shape, load, dtype=numbers.dtype)
    mean = Mean((0, 1), 2, True)
    centred = constant(Elementwise(Arithmetic.SUBTRACT), weight, constant(mean, weight))
    squares = constant(mean, constant(Elementwise(Arithmetic.MULTIPLY), centred, centred))
    whole = constant(ADD, constant(DIVIDE, centred, squares), weight)
    exact = numbers.astype("f8")
    middle = exact - exact.mean()
    for _ in range(2):
        reads.clear()
        assert np.allclose(whole.exact(), middle / np.mean(middle**2) + exact, rtol=1e-14)
        assert len(reads) == 1  # and it is not held any longer than that


# --- the operators by themselves ---------------------------------------------------------------------


@pytest.mark.parametrize("absent", [(), (1,), (2,), (1, 2)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_batchnorm(axis: int, absent: tuple[int, ...]) -> None:
    data = random(2, 3, 4)
    c = data.shape[axis]
    arrays = [data, random(c, seed=1), random(c, seed=2), random(c, seed=3), random(c, seed=4) ** 2]
    given = [None if i in absent else a for i, a in enumerate(arrays)]
    constant = found(BatchNorm(0.5, channel_axis=axis), *given)
    g, b, m, v = (a.astype("f8").reshape([-1 if i == axis else 1 for i in range(3)]) for a in arrays[1:])
    g, b = (1 if 1 in absent else g), (0 if 2 in absent else b)
    np.testing.assert_allclose(constant.exact(), (data - m) / np.sqrt(v + 0.5) * g + b, rtol=1e-12)


@pytest.mark.parametrize("absent", [0, 3, 4])
def test_a_batchnorm_without_data_or_statistics(absent: int) -> None:
    arrays: list[np.ndarray | None] = [random(2, 3), *[np.ones(3, "f4")] * 4]
    arrays[absent] = None
    assert evaluated(BatchNorm(1.0), values(*arrays)) is None
    assert evaluated(BatchNorm(1.0), values(*arrays[: max(absent, 1)])) is None


@pytest.mark.parametrize(("shape", "mean"), [((3,), 3), ((3,), 1), ((2, 3), 2), ((2,), 0)])
def test_a_batchnorm_of_other_shapes(shape: tuple[int, ...], mean: int) -> None:
    assert evaluated(BatchNorm(1.0), values(random(*shape), *[np.ones(mean, "f4")] * 4)) is None


@pytest.mark.parametrize("axis", [0, 1])
def test_a_batchnorm_whose_statistics_are_no_vector(axis: int) -> None:
    assert evaluated(BatchNorm(1.0, channel_axis=axis), values(random(3), *[np.ones((), "f4")] * 4)) is None


def test_nothing_is_computed_before_somebody_asks_for_numbers() -> None:
    def load() -> np.ndarray:
        raise AssertionError("asked for")

    data = Value("x", (3,), constant=Constant((3,), load, dtype=np.dtype("f4")))
    constant = evaluated(ADD, [data, data])
    assert constant is not None
    assert (constant.dtype, constant.shape) == (np.float32, (3,))
    with pytest.raises(AssertionError, match="asked for"):
        constant.array()


@pytest.mark.parametrize("which", [1, 2, 4])
def test_statistics_that_make_no_map_make_no_number(which: int) -> None:
    arrays = [random(2, 3), *(np.ones(3, "f4") for _ in range(4))]
    arrays[which][1] = np.nan
    constant = evaluated(BatchNorm(1.0), values(*arrays))
    assert constant is not None
    assert constant.exact().shape == (2, 3)
    assert np.isnan(constant.exact()).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_every_float_is_rounded_once(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    a, b = np.array([1], dtype), np.array([3], dtype)
    constant = found(DIVIDE, a, b)
    assert constant.dtype == dtype
    assert constant.exact()[0] == 1 / 3
    assert constant.array()[0] == np.array([1 / 3]).astype(dtype)[0]


@pytest.mark.parametrize("given", [(), (None, random(3)), (random(3), None), (random(3),)])
def test_operands_that_are_missing(given: tuple[np.ndarray | None, ...]) -> None:
    assert evaluated(ADD, values(*given)) is None


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_batchnorm_of_which_one_number_flows_is_no_constant(slot: int) -> None:
    """Its γ or β is there, and only not known: it must not count as left out."""
    inputs = values(random(2, 3, 4), *(random(3, seed=seed) ** 2 for seed in range(1, 5)))
    inputs[slot] = Value("flows", (2, 3, 4) if slot == 0 else (3,))
    assert evaluated(BatchNorm(1e-5), inputs) is None


def test_what_is_no_arithmetic_or_no_float() -> None:
    assert evaluated(Other("op"), values(random(3))) is None
    assert evaluated(Mean((0,), 1, False), values(np.int64([1, 2]))) is None
    assert evaluated(Mean((0,), 1, False), [Value("x", (3,))]) is None
    assert evaluated(Mean((0,), 1, False), [None]) is None


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("scale", [np.float32(0.5), np.float32([0.5])])
@pytest.mark.parametrize("zero", [[], [np.int8(3)], [np.int8([3])]])
def test_integers_that_stand_for_a_vector(shape: tuple[int, ...], scale: Any, zero: list[Any]) -> None:
    stored = np.full(shape, 7, np.int8)
    constant = found(Dequantize(None), stored, np.asarray(scale), *(np.asarray(one) for one in zero))
    assert constant.shape == shape
    np.testing.assert_array_equal(constant.array(), np.full(shape, 2.0 if zero else 3.5))


@pytest.mark.parametrize("other", [(2,), (3, 1)])
def test_integers_with_other_scales_are_none(other: tuple[int, ...]) -> None:
    for operands in ((np.ones(other, "f4"),), (np.float32([1]), np.ones(other, np.int8))):
        assert evaluated(Dequantize(0), values(np.ones(3, np.int8), *operands)) is None


def test_a_norm_without_the_axes_that_it_is_over() -> None:
    array = np.arange(1, 25, dtype="f4").reshape(2, 3, 4)
    for axes, kept, shape in (((1,), True, (2, 1, 4)), ((0, 2), True, (1, 3, 1)), ((1,), False, (2, 4))):
        constant = found(Function("ReduceL2", axes, kept), array)
        assert constant.shape == shape
        expected = np.sqrt((array.astype("f8") ** 2).sum(axis=axes, keepdims=kept))
        np.testing.assert_allclose(constant.exact(), expected, rtol=1e-12)


def test_a_root_of_what_has_none_is_for_the_one_who_stores_it() -> None:
    with np.errstate(all="raise"):
        assert np.isnan(found(Function("Sqrt"), np.float32([-1, 4])).exact()).tolist() == [True, False]


def test_a_change_of_sign() -> None:
    np.testing.assert_array_equal(found(Negation(), random(2, 3)).array(), -random(2, 3))
    assert evaluated(Negation(), [Value("x", (3,))]) is None


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3), (3, 4)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((3,), (3,)),
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
    ],
)
def test_a_product_of_vectors_and_matrices(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Of further axes a weight has none."""
    a, b = random(*left), random(*right, seed=1)
    if len(left) == 3 or len(right) == 3:
        assert evaluated(Linear(1), values(a, b)) is None
    else:
        np.testing.assert_allclose(found(Linear(1), a, b).exact(), a.astype("f8") @ b, rtol=1e-12)


@pytest.mark.parametrize(
    "op", [Linear(0), Linear(1, 2.0), Linear(1, transposed_data=True), Linear(0, 2.0, transposed_data=True)]
)
def test_a_product_that_is_written_another_way_is_none_of_constants(op: Linear) -> None:
    assert evaluated(op, values(random(3, 3), random(3, 3, seed=1))) is None


@pytest.mark.parametrize("right", [random(4, 2), random(3, 2).astype("f2"), random(3, 4, 2)])
def test_a_product_of_other_sizes_types_or_axes_is_none(right: np.ndarray) -> None:
    assert evaluated(Linear(1), values(random(2, 3), right)) is None


def test_a_product_that_would_take_long_is_none() -> None:
    def unread(*shape: int) -> Value:
        return Value("w", shape, constant=Constant(shape, lambda: np.ones(shape, "f4"), dtype=np.dtype("f4")))

    at_most = evaluated(Linear(1), [unread(256, 512), unread(512, 512)])
    assert at_most is not None
    assert at_most.shape == (256, 512)
    assert evaluated(Linear(1), [unread(256, 513), unread(513, 512)]) is None


def test_division_by_zero_is_for_the_one_who_stores_it() -> None:
    with np.errstate(all="raise"):
        constant = found(DIVIDE, np.float32([1, -1, 0, 3e38]), np.float32([0, 0, 0, 1e-38]))
        assert np.isinf(constant.exact()[:2]).all()
        assert np.isnan(constant.exact()[2])
        np.testing.assert_array_equal(constant.array(), np.float32([np.inf, -np.inf, np.nan, np.inf]))


@pytest.mark.parametrize(
    ("axes", "keepdims", "shape"),
    [
        ((1,), True, (2, 1, 4)),
        ((1,), False, (2, 4)),
        ((0, 2), True, (1, 3, 1)),
        ((0, 2), False, (3,)),
        ((0, 1, 2), False, ()),
        ((), True, (2, 3, 4)),
    ],
)
def test_a_mean(axes: tuple[int, ...], keepdims: bool, shape: tuple[int, ...]) -> None:
    data = random(2, 3, 4)
    constant = evaluated(Mean(axes, 3, keepdims), values(data))
    assert constant is not None
    assert constant.shape == shape
    np.testing.assert_array_equal(constant.exact(), data.astype("f8").mean(axis=axes, keepdims=keepdims))


def test_a_mean_of_none_for_nothing() -> None:
    """An axis without elements that is kept does no harm."""
    assert found(Mean((1,), 2, False), np.zeros((0, 3), "f4")).shape == (0,)


# --- how much ----------------------------------------------------------------------------------------


def test_elements_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_LARGEST", 12)
    assert evaluated(ADD, values(random(3, 1), random(4))) is not None
    assert evaluated(ADD, values(random(13, 1), random(1))) is None


def test_work_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 for the result, 3 and 4 for what is read; an operand that is computed counts what it took."""
    constant = found(ADD, random(3, 1), random(4))
    assert constant.work == 19
    again = evaluated(ADD, [Value("a", (3, 4), constant=constant), *values(random(1)), None])
    assert again is not None
    assert again.work == 12 + 19 + 1
    monkeypatch.setattr(evaluation, "_MOST_WORK", 19)
    assert evaluated(ADD, values(random(3, 1), random(4))) is not None
    monkeypatch.setattr(evaluation, "_MOST_WORK", 18)
    assert evaluated(ADD, values(random(3, 1), random(4))) is None


# --- the edits ---------------------------------------------------------------------------------------


class Constants(Graph):
    """Nodes whose results are known where all of their operands are."""

    def add(self, name: str, op: Op, *inputs: Value | Constant | None, **more: Any) -> Value:
        output = super().add(name, op, *inputs, **more)
        constant = evaluated(op, node_of(output).inputs)
        if constant is not None:
            output.constant, output.shape = constant, constant.shape
        return output

    def normalised(self, name: str, data: Value | Constant | None = None) -> Value:
        weight = numbers(4, 4, 1, 1, fill=3) if data is None else data
        return self.add(name, BatchNorm(1e-5), weight, *(numbers(4) for _ in range(4)))

    def plan(self, output: Value, **options: Any) -> Fold | Refusal:
        return evaluate(View(self.nodes, pure=True), node_of(output), FuseOptions(**options))


@pytest.fixture
def graph() -> Constants:
    return Constants()


def fold_of(result: Fold | Refusal) -> Fold:
    assert isinstance(result, Fold), result
    assert result.rule == OF_CONSTANTS == "batchnorm-of-constants"
    return result


def stored(fold: Fold) -> list[str]:
    names = []
    for edit in fold.edits:
        assert isinstance(edit, Evaluate)
        assert edit.constant is edit.node.outputs[0].constant
        names.append(edit.node.name)
    return names


def test_stored_where_it_is_read(graph: Constants) -> None:
    v = graph.normalised("v")
    for name in "cd":
        graph.add(name, Conv(1), graph.x, v)
    fold = fold_of(graph.plan(v))
    assert (stored(fold), fold.into) == (["v"], ("c", "d"))


def test_stored_at_the_end_of_what_is_computed_from_it(graph: Constants) -> None:
    """On both ways of a fork, once where they meet again, and once where only one of them is read."""
    v = graph.normalised("v")
    graph.add("e", Conv(1), graph.x, graph.add("other", ADD, v, numbers(1)))
    left = graph.add("left", ADD, v, numbers(1))
    right = graph.add("right", ADD, v, numbers(1))
    met = graph.add("met", ADD, left, right)
    graph.add("c", Conv(1), graph.x, met)
    graph.add("d", Conv(1), graph.x, right)
    fold = fold_of(graph.plan(v))
    assert (sorted(stored(fold)), sorted(fold.into)) == (["met", "other", "right"], ["c", "d", "e"])


def test_read_twice_by_what_is_computed_from_it(graph: Constants) -> None:
    v = graph.normalised("v")
    square = graph.add("square", Elementwise(Arithmetic.MULTIPLY), v, v)
    node = node_of(graph.add("c", Conv(1), graph.x, square))
    graph.add("again", Conv(1), graph.x, square, square)
    fold = fold_of(graph.plan(v))
    assert (stored(fold), fold.into) == (["square"], (node.name, "again"))


def test_where_somebody_sees_it_it_stays(graph: Constants) -> None:
    v = graph.normalised("v")
    last = graph.add("last", ADD, v, numbers(1))
    graph.add("c", Conv(1), graph.x, last)
    last.observed = "the graph's output"
    refusal = graph.plan(v)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.OBSERVED
    assert refusal.detail == "'last', a constant that it computes, is the graph's output"


def test_switched_off(graph: Constants) -> None:
    v = graph.normalised("v")
    graph.add("c", Conv(1), graph.x, v)
    refusal = graph.plan(v, skip=(OF_CONSTANTS,))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.SKIPPED
    fold_of(graph.plan(v, only=(OF_CONSTANTS,)))


def test_read_by_nobody(graph: Constants) -> None:
    for v in (graph.normalised("v"), graph.normalised("w")):
        refusal = graph.plan(v)
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.NO_PRODUCER
        graph.add("last", ADD, v, numbers(1))


def test_what_the_frontend_cannot_remove_stays(graph: Constants) -> None:
    v = graph.normalised("v")
    last = graph.add("last", ADD, v, numbers(1))
    graph.add("c", Conv(1), graph.x, last)
    lock = Refusal(Reason.OTHER_SCOPE, "for the test")
    node_of(v).locks["bypass"] = lock
    fold_of(graph.plan(v))
    node_of(last).locks["bypass"] = lock
    assert graph.plan(v) is lock


@pytest.mark.parametrize("fill", [1e30, 1e-30])
@pytest.mark.parametrize("rank", [1, 2])
def test_what_leaves_its_dtype_stays(graph: Constants, rank: int, fill: float) -> None:
    """A vector may be as small as it likes: it is added to something."""
    shape = (4, 2)[:rank]
    product = Elementwise(Arithmetic.MULTIPLY)
    v = graph.add(
        "v", BatchNorm(0.0, channel_axis=0), numbers(*shape), *(numbers(4, fill=f) for f in (fill, 0, 0, 1))
    )
    graph.add("c", Other("op"), graph.add("last", product, v, numbers(1, fill=fill)))
    result = graph.plan(v)
    if rank == 1 and fill < 1:
        fold_of(result)
        return
    assert isinstance(result, Refusal)
    assert result.reason is Reason.OUT_OF_RANGE
    assert result.detail.startswith("'last', a constant that it computes: in ")


def test_one_of_several_outputs_is_no_end(graph: Constants) -> None:
    """An operator with further outputs stays, so it reads what is stored."""
    v = graph.normalised("v")
    several = graph.add("several", ADD, v, numbers(1), outputs=2)
    assert several.constant is not None
    graph.add("c", Conv(1), graph.x, several)
    fold = fold_of(graph.plan(v))
    assert (stored(fold), fold.into) == (["v"], ("several",))


def test_what_went_with_another_one_counts_as_folded(graph: Constants) -> None:
    """Both are asked in one round; the second is gone by then."""
    v = graph.normalised("v", graph.normalised("u"))
    graph.add("c", Conv(1), graph.x, v)
    gone = node_of(v)
    view = View(graph.nodes, pure=True)
    plan = make_plan(view, FuseOptions())
    assert [(f.name, f.into, f.rule) for f in plan.folded] == [
        ("u", ("c",), OF_CONSTANTS),
        ("v", (), OF_CONSTANTS),
    ]
    assert plan.kept == []
    assert len(plan.edits) == 1
    assert evaluate(view, gone, FuseOptions()) == Fold((), OF_CONSTANTS, ())
