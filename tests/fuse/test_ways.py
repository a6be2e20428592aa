"""The ways out of a node, one by one: which is taken, what it leaves, and what is said where none is open."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.linear import Linear
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.merging.branches import conv_layer
from convbn.fuse.plan.planner import make_plan
from convbn.fuse.plan.ways import _near
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.op import BIAS, Op, Other, Window
from convbn.fuse.view.view import View


def node(operator: str, sources: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, sources.split(), [target], name=target, **attributes)


def check(built: onnx.ModelProto, left: list[str], *, bound: float = 2e-6, **options: Any) -> Folding:
    result = fold(built, options=FuseOptions(**options))
    assert operators(result.model) == left
    feeds = {
        value.name: random(
            *[d.dim_value for d in value.type.tensor_type.shape.dim],
            seed=7,
            dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in built.graph.input
    }
    assert relative_error(run(built, feeds), run(result.model, feeds)) < bound
    return result


# --- to an addition ------------------------------------------------------------------------------------

GATE = [
    node("MatMul", "x w", "m"),
    node("MatMul", "x v", "k"),
    node("Sigmoid", "k", "g"),
    node("Mul", "m g", "p"),
]
GATED = operators(model(GATE, {}, [], {}))
SEQUENCE = [*GATE, node("Transpose", "p", "t", perm=[0, 2, 1]), batchnorm("t", "n"), node("Tanh", "n", "y")]


def sequence(dtype: Any = np.float32, **changed: np.ndarray) -> onnx.ModelProto:
    """A gate over ``[N, L, I]``, turned to ``[N, C, L]``, with a BatchNorm behind it: it takes a scale and no shift."""
    numbers = {"w": random(4, 6, dtype=dtype), "v": random(4, 6, seed=1, dtype=dtype)}
    numbers |= {**batchnorm_parameters(6), **changed}
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(SEQUENCE, {"x": [2, 5, 4]}, ["y"], numbers, elem_type=elem_type)


def test_an_addition_takes_the_place_of_a_batchnorm() -> None:
    result = check(sequence(), [*GATED, "Transpose", "Add", "Tanh"])
    (folded,) = result.report.folded
    assert (folded.name, folded.into, folded.rule) == ("bn", ("m",), "batchnorm-to-add")


def test_a_shift_that_the_type_cannot_hold_is_no_addition() -> None:
    """The BatchNorm's own parameters are float32, the data is float16."""
    left = [*GATED, "Transpose", "BatchNormalization", "Tanh"]
    large = fold(sequence(np.float16, **{"bn.beta": np.full(6, 1e5, "f4")}))
    assert operators(large.model) == left
    assert large.report.kept[0].reason is Reason.PRODUCER_NOT_LINEAR
    fits = fold(sequence(np.float16, **{"bn.beta": np.full(6, 6e4, "f4"), "bn.mean": np.zeros(6, "f4")}))
    assert operators(fits.model) == [*left[:-2], "Add", "Tanh"]
    assert {tensor.data_type for tensor in fits.model.graph.initializer} == {TensorProto.FLOAT16}


def test_an_addition_is_made_only_where_no_later_round_finds_a_place() -> None:
    """The products with 1 go in the first round; before, they keep the convolution out of reach."""
    nodes = [
        *SEQUENCE[:-2],
        batchnorm("t", "v0"),
        *(node("Mul", f"v{i} one", f"v{i + 1}") for i in range(70)),
        node("Conv", "v70 kernel", "y"),
    ]
    numbers = {
        "w": random(4, 6),
        "v": random(4, 6),
        "one": np.ones((1, 6, 1), "f4"),
        "kernel": random(3, 6, 1),
        **batchnorm_parameters(6),
    }
    built = onnx.shape_inference.infer_shapes(model(nodes, {"x": [2, 5, 4]}, ["y"], numbers))
    (folded,) = check(built, [*GATED, "Transpose", "Conv"]).report.folded
    assert (folded.into, folded.rule) == (("y",), "batchnorm-forward")


@pytest.mark.parametrize("rank", [3, 4])
def test_on_images_an_addition_costs_what_the_batchnorm_did(rank: int) -> None:
    x = {3: [2, 5, 4], 4: [2, 3, 5, 4]}[rank]
    turned = [0, 2, 1] if rank == 3 else [0, 3, 1, 2]
    nodes = [
        *GATE,
        node("Transpose", "p", "t", perm=turned),
        batchnorm("t", "n"),
        node("Tanh", "n", "y"),
    ]
    numbers = {"w": random(4, 6), "v": random(4, 6), **batchnorm_parameters(6)}
    built = model(nodes, {"x": x}, ["y"], numbers)
    left = "Add" if rank == 3 else "BatchNormalization"
    check(built, [*GATED, "Transpose", left, "Tanh"])


def test_no_addition_where_only_a_batchnorm_takes_the_scale() -> None:
    """Its parameters may be of another type than the data, so they do not say what the addition must be of."""
    nodes = [
        node("Sigmoid", "x", "s"),
        batchnorm("s", "a", prefix="bn1"),
        node("Tanh", "x", "g"),
        node("Mul", "a g", "m"),
        batchnorm("m", "n", prefix="bn2"),
        node("Tanh", "n", "y"),
    ]
    numbers = {**batchnorm_parameters(6, prefix="bn1"), **batchnorm_parameters(6, prefix="bn2", seed=2)}
    built = onnx.shape_inference.infer_shapes(model(nodes, {"x": [2, 6, 5]}, ["y"], numbers))
    assert check(built, operators(built)).report.batchnorm.after == 2


def test_no_addition_where_its_rank_is_not_known() -> None:
    built = sequence()
    built.graph.input[0].type.tensor_type.ClearField("shape")
    del built.graph.output[0].type.tensor_type.shape.dim[:]
    built.graph.output[0].type.tensor_type.ClearField("shape")
    assert operators(fold(built).model) == operators(built)


# --- apart ---------------------------------------------------------------------------------------------


def stream(*, shift: float = 0.5, **changed: np.ndarray) -> onnx.ModelProto:
    """``bn → relu → padded conv`` beside a shortcut: the shift can only go back, and the scale only on."""
    nodes = [
        node("Conv", "x w0", "c", pads=[1] * 4),
        batchnorm("c", "n"),
        node("Relu", "n", "r"),
        node("Conv", "r w1", "d", pads=[1] * 4),
        node("Add", "c d", "s"),
        node("Conv", "s w2", "y"),
    ]
    numbers = {
        "w0": random(6, 6, 3, 3),
        "w1": random(6, 6, 3, 3, seed=1),
        "w2": random(6, 6, 1, 1, seed=2),
        "bn.gamma": np.linspace(0.5, 2, 6).astype("f4"),
        "bn.beta": np.full(6, shift, "f4"),
        "bn.mean": np.full(6, 0.25, "f4"),
        "bn.var": np.full(6, 4.0, "f4"),
        **changed,
    }
    return onnx.shape_inference.infer_shapes(model(nodes, {"x": [1, 6, 7, 7]}, ["y"], numbers))


def test_shift_and_scale_part() -> None:
    result = check(stream(), ["Conv", "Relu", "Conv", "Add", "Conv"])
    assert result.report.folded[0].rule == "batchnorm-apart"


@pytest.mark.parametrize("options", [{"skip": ("batchnorm-apart",)}, {"only": ("batchnorm-into-conv",)}])
def test_apart_can_be_switched_off(options: dict[str, Any]) -> None:
    result = check(stream(), ["Conv", "BatchNormalization", "Relu", "Conv", "Add", "Conv"], **options)
    (kept,) = result.report.kept
    assert kept.reason is Reason.SEVERAL_READERS


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("deviations", "goes"), [(15.9, True), (16.1, False)])
def test_how_far_a_shift_may_move_a_stream(deviations: float, goes: bool, sign: int) -> None:
    """Counted against ``|μ| + σ``: with β = s·d·(|μ| + σ) + s·μ the stream moves by d."""
    scale = np.linspace(0.5, 2, 6) / np.sqrt(4 + 1e-5)
    far = sign * scale * deviations * (0.25 + 2)
    few = np.where(np.arange(6) == 2, far, 0) + scale * 0.25
    result = fold(stream(**{"bn.beta": few.astype("f4")}))
    assert (result.report.batchnorm.after == 0) is goes


def test_a_negative_mean_counts_by_its_size() -> None:
    scale = np.linspace(0.5, 2, 6) / 2
    changed = {"bn.mean": np.full(6, -1.0, "f4"), "bn.beta": (scale * (15.9 * 3 - 1)).astype("f4")}
    assert fold(stream(**changed)).report.batchnorm.after == 0
    changed = {"bn.mean": np.full(6, -1.0, "f4"), "bn.beta": (scale * (16.1 * 3 - 1)).astype("f4")}
    assert fold(stream(**changed)).report.batchnorm.after == 1


# --- as a whole ----------------------------------------------------------------------------------------


def test_a_map_that_changes_nothing_goes_nowhere() -> None:
    ones, zeros = np.ones(6, "f4"), np.zeros(6, "f4")
    numbers = {"bn.gamma": ones, "bn.beta": zeros, "bn.mean": zeros, "bn.var": ones}
    nodes = [node("Tanh", "x", "t"), batchnorm("t", "n", epsilon=0.0), node("Tanh", "n", "y")]
    result = check(model(nodes, {"x": [2, 6, 5]}, ["y"], numbers), ["Tanh", "Tanh"])
    (folded,) = result.report.folded
    assert (folded.into, folded.rule) == ((), "batchnorm-backward")


def around(place: str) -> onnx.ModelProto:
    """A convolution behind or in front of a BatchNorm."""
    nodes = {
        "backward": [node("Conv", "x w", "c"), batchnorm("c", "n"), node("Tanh", "n", "y")],
        "forward": [node("Tanh", "x", "t"), batchnorm("t", "n"), node("Conv", "n w", "y")],
    }[place]
    return model(nodes, {"x": [1, 6, 5, 5]}, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)})


WHOLE = {"backward": ("c", "batchnorm-into-conv"), "forward": ("y", "batchnorm-forward")}


@pytest.mark.parametrize("skip", ["batchnorm-apart", "batchnorm-to-add", "batchnorm-through-pool"])
@pytest.mark.parametrize("place", WHOLE)
def test_as_a_whole_on_either_side(place: str, skip: str) -> None:
    built = around(place)
    result = check(built, [op for op in operators(built) if op != "BatchNormalization"], skip=(skip,))
    (folded,) = result.report.folded
    into, rule = WHOLE[place]
    assert (folded.into, folded.rule) == ((into,), rule)


@pytest.mark.parametrize(
    ("place", "options", "goes"),
    [
        ("forward", {"skip": ("batchnorm-forward",)}, False),
        ("backward", {"skip": ("batchnorm-forward",)}, True),
        ("forward", {"skip": ("batchnorm-into-conv",)}, False),
        ("backward", {"skip": ("batchnorm-into-conv",)}, False),
        ("forward", {"only": ("batchnorm-forward", "batchnorm-into-conv")}, True),
        ("forward", {"only": ("batchnorm-into-conv",)}, False),
        ("forward", {"only": ("batchnorm-forward",)}, False),
        ("backward", {"only": ("batchnorm-into-conv",)}, True),
        ("backward", {"only": ("batchnorm-forward",)}, False),
    ],
)
def test_options_choose_among_them(place: str, options: dict[str, Any], goes: bool) -> None:
    result = fold(around(place), options=FuseOptions(**options))
    assert (result.report.batchnorm.after == 0) is goes
    if not goes and place == "backward":
        assert result.report.kept[0].reason is Reason.SKIPPED


@pytest.mark.parametrize("goes", [True, False])
def test_to_an_addition_can_be_switched_off(goes: bool) -> None:
    others = ("batchnorm-forward", "batchnorm-apart")
    result = fold(sequence(), options=FuseOptions(skip=others if goes else ("batchnorm-to-add",)))
    assert (result.report.batchnorm.after == 0) is goes


# --- what is said ----------------------------------------------------------------------------------------


def test_both_refusals_are_told() -> None:
    nodes = [node("Sigmoid", "x", "s"), batchnorm("s", "n"), node("Tanh", "n", "y")]
    (kept,) = fold(model(nodes, {"x": [2, 6, 5]}, ["y"], batchnorm_parameters(6))).report.kept
    assert kept.reason is Reason.PRODUCER_NOT_LINEAR
    back, on = kept.detail.split("; ")
    assert back.startswith("backward, ")
    assert "Sigmoid" in back
    assert on.startswith("forward, ")
    assert "Tanh" in on


def test_integers_do_not_say_what_an_addition_must_be_of() -> None:
    """A quantised weight changes its scales, and where a factor is negative its integers."""
    quantised = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="dq", axis=1)
    numbers = {
        "q": np.arange(-12, 12, dtype=np.int8).reshape(4, 6),
        "s": np.full(6, 0.1, "f4"),
        "v": random(4, 6),
    }
    built = model([quantised, *SEQUENCE], {"x": [2, 5, 4]}, ["y"], {**numbers, **batchnorm_parameters(6)})
    assert (batchnorm_parameters(6)["bn.gamma"] < 0).any()
    check(built, ["DequantizeLinear", *GATED, "Transpose", "Add", "Tanh"])


# --- views in which nodes write to their inputs ------------------------------------------------------------


def call(name: str, op: Op, *inputs: Value) -> Node:
    made = Node(name, op, list(inputs), [])
    for slot, value in enumerate(inputs):
        value.readers.append(Reader(made, slot))
    made.outputs.append(Value(f"v.{name}", (1, 2, 3, 3), producer=made))
    return made


def constant(name: str, *numbers: float) -> Value:
    return Value(name, (len(numbers),), constant=Constant.of(np.array(numbers, "f4")))


def impure(gamma: float, behind: str) -> View:
    """A BatchNorm of this γ, else without effect, behind a convolution or an input, and what writes to its output."""
    x = Value("x", (1, 2, 3, 3))
    ones = Constant.of(np.ones((2, 2, 1, 1), "f4"))
    window = Window((1, 1), (1, 1), (0, 0), (0, 0))
    conv = call("conv", Conv(1, 1, window), x, Value("w", (2, 2, 1, 1), constant=ones))
    source = x if behind == "an input" else conv.outputs[0]
    statistics = (constant("γ", gamma, gamma), constant("β", 0, 0), constant("μ", 0, 0), constant("σ²", 1, 1))
    norm = call("bn", BatchNorm(epsilon=0.0), source, *statistics)
    nodes = [conv, norm, call("add_", Other("add_"), norm.outputs[0])]
    if behind == "several readers":
        nodes.append(call("late", Other("sigmoid"), source))
    if behind == "an output":
        source.observed = "an output of the model"
    return View(nodes, pure=False)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("behind", ["an input", "several readers", "an output"])
def test_a_copy_that_is_written_to_in_place_stays(gamma: float, behind: str) -> None:
    """Even where it changes nothing: without it, what is added behind it would be added to what others read."""
    view = impure(gamma, behind)
    plan = make_plan(view, FuseOptions())
    assert [kept.name for kept in plan.kept] == ["bn"]
    assert not plan.edits
    expected = {
        "an input": Reason.NO_PRODUCER,
        "several readers": Reason.SEVERAL_READERS,
        "an output": Reason.OBSERVED,
    }
    assert plan.kept[0].reason is (Reason.SEVERAL_READERS if gamma == 1 else expected[behind])


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_a_node_that_the_frontend_cannot_take_out_stays(gamma: float) -> None:
    view = impure(gamma, "a convolution alone")
    lock = view.nodes[1].locks["bypass"] = Refusal(Reason.HOOKED, "for the test")
    plan = make_plan(view, FuseOptions())
    assert [(kept.reason, kept.detail) for kept in plan.kept] == [(lock.reason, lock.detail)]
    assert not plan.edits


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_window_of_another_rank_than_the_weight_is_no_layer(rank: int) -> None:
    """A frontend that says so contradicts itself, and nothing is merged on the word of one of the two."""
    (conv, *_) = impure(1.0, "an input").nodes
    ones, zeros = (1,) * rank, (0,) * rank
    conv.op = Conv(1, 1, Window(ones, ones, zeros, zeros))
    assert (conv_layer(conv) is None) is (rank != 2)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_what_nobody_else_sees_may_be_written_to(gamma: float) -> None:
    plan = make_plan(impure(gamma, "a convolution alone"), FuseOptions())
    assert not plan.kept
    assert [folded.name for folded in plan.folded] == ["bn"]


@pytest.mark.parametrize("replaceable", [True, False])
def test_an_addition_needs_a_node_that_can_be_replaced(replaceable: bool) -> None:
    weight = Value("w", (2, 2), constant=Constant.of(np.ones((2, 2), "f4")))
    product = call("m", Linear(output_axis=1), Value("x", (5, 2)), weight)
    product.locks[BIAS] = Refusal(Reason.NO_BIAS, "for the test")
    statistics = (constant("γ", 2, 3), constant("β", 1, 1), constant("μ", 0, 0), constant("σ²", 1, 1))
    norm = call("bn", BatchNorm(epsilon=0.0), product.outputs[0], *statistics)
    for made in (product, norm):
        made.outputs[0].shape = (5, 2)
    nodes = [product, norm, call("late", Other("tanh"), norm.outputs[0])]
    plan = make_plan(View(nodes, pure=True, replaceable=replaceable), FuseOptions())
    assert [folded.rule for folded in plan.folded] == (["batchnorm-to-add"] if replaceable else [])


def test_no_shift_moves_where_there_is_nothing_to_measure_it_by() -> None:
    """Of a channel that is always 0, μ and σ² are 0, and so may its shift be."""
    source = Value("x", (1, 2, 3, 3))
    numbers = (constant("γ", 1, 1), constant("β", 0, 0), constant("μ", 0, 0), constant("σ²", 0, 0))
    norm = call("bn", BatchNorm(epsilon=1.0), source, *numbers)
    assert _near(norm, np.zeros(2))
    assert not _near(norm, np.array([0, 1e-30]))


def test_only_batchnorms_go_where_nodes_write_to_their_inputs() -> None:
    view = impure(2.0, "a convolution alone")
    view.nodes[1].op = Elementwise(Arithmetic.MULTIPLY)
    del view.nodes[1].inputs[2:]
    view.nodes[1].inputs[1] = Value("k", (2, 1, 1), constant=Constant.of(np.full((2, 1, 1), 3, "f4")))
    assert not make_plan(view, FuseOptions()).edits
    pure = View(view.nodes, pure=True)
    assert make_plan(pure, FuseOptions()).edits
