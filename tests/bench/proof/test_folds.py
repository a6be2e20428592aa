"""The local proof: no wrong fold passes whatever hides it, no right one is refused, and what nothing shows is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

import convbn
from convbn.errors import CheckFailedError
from convbn.fuse.algebra.affine import Affine
from convbn.fuse.plan import maps

Array = np.ndarray
Algebra = Callable[[Array, Array, Array, Array, Array, Array], tuple[Array, Array]]

#: γ, β, μ, σ², and the right scale and shift, into wrong ones.
WRONG: dict[str, Algebra] = {
    "no epsilon": lambda g, b, m, v, s, t: (g / np.sqrt(v), b - m * g / np.sqrt(v)),
    "sign of the mean": lambda g, b, m, v, s, t: (s, b + m * s),
    "scale 1 % off": lambda g, b, m, v, s, t: (s * 1.01, t),
    "shift lost": lambda g, b, m, v, s, t: (s, t * 0),
    "one shift off": lambda g, b, m, v, s, t: (s, t + np.eye(len(t))[0]),
    "one scale doubled": lambda g, b, m, v, s, t: (s * (1 + np.eye(len(s))[0]), t),
    "channels rolled": lambda g, b, m, v, s, t: (np.roll(s, 1), np.roll(t, 1)),
}


def layer(tail: list[onnx.NodeProto], weights: dict[str, Array] | None = None) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "b"), *tail]
    held = {"w": random(6, 3, 3, 3, seed=2), **batchnorm_parameters(6), **(weights or {})}
    return model(nodes, {"x": [1, 3, 10, 10]}, ["y"], held)


def node(op: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(names[:-1]), [names[-1]], name=f"{op}.{names[-1]}", **attributes)


def saturated() -> onnx.ModelProto:
    return layer([node("Add", "b", "k", "s"), node("Sigmoid", "s", "y")], {"k": np.float32(40).reshape(1)})


def beside_a_stream() -> onnx.ModelProto:
    tail = [node("Conv", "x", "big", "far"), node("Abs", "far", "stream"), node("Add", "b", "stream", "y")]
    return layer(tail, {"big": 1e5 * random(6, 3, 3, 3)})


def masked() -> onnx.ModelProto:
    tail = [
        node("Relu", "b", "r"),
        node("Mul", "r", "m", "n"),
        node("Conv", "x", "v", "z"),
        node("Add", "n", "z", "y"),
    ]
    mask = np.zeros((1, 6, 8, 8), np.float32)
    return layer(tail, {"m": mask, "v": random(6, 3, 3, 3, seed=3)})


def dead() -> onnx.ModelProto:
    return layer([node("Sub", "b", "k", "s"), node("Relu", "s", "y")], {"k": np.full(1, 1e3, np.float32)})


def offset() -> onnx.ModelProto:
    return layer([node("Add", "b", "k", "y")], {"k": np.full(1, 1e6, np.float32)})


def whole() -> onnx.ModelProto:
    """The convolution takes the million in, and sums in its steps of 1/16."""
    tail = [node("Add", "b", "k", "s"), node("Cast", "s", "y", to=TensorProto.INT64)]
    built = layer(tail, {"k": np.full(1, 1e6, np.float32)})
    built.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return built


def moved_through() -> onnx.ModelProto:
    """Conv -> Relu -> BatchNorm -> Conv, whose map goes onward."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        batchnorm("r", "b"),
        helper.make_node("Conv", ["b", "u"], ["z"], name="last"),
        helper.make_node("Tanh", ["z"], ["y"], name="tanh"),
    ]
    held = {"w": random(6, 3, 3, 3, seed=2), "u": random(4, 6, 3, 3, seed=4), **batchnorm_parameters(6)}
    return model(nodes, {"x": [1, 3, 10, 10]}, ["y"], held)


HIDING = (saturated, beside_a_stream, masked, dead, offset, whole, moved_through)


@pytest.fixture
def algebra(monkeypatch: pytest.MonkeyPatch) -> Callable[[Algebra], None]:
    """Break the algebra of the fold."""
    right = maps.from_batchnorm

    def broken(wrong: Algebra) -> None:
        def from_batchnorm(gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
            made = right(gamma, beta, mean, variance, epsilon)
            if not isinstance(made, Affine):
                return made
            return Affine(*wrong(gamma, beta, mean, variance, made.scale.copy(), made.shift.copy()))

        monkeypatch.setattr(maps, "from_batchnorm", from_batchnorm)

    return broken


@pytest.mark.parametrize("build", HIDING)
def test_a_right_fold_is_shown_where_it_happened(build: Callable[[], onnx.ModelProto]) -> None:
    report = convbn.fuse(build()).report
    assert report.batchnorm.after == 0
    assert report.verify["status"] == "equal"
    assert [fold["how"] for fold in report.verify["proof"]["folds"]] == ["float64"]
    assert report.verify["proof"]["wrong"] == []


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("build", HIDING)
def test_a_wrong_fold_is_seen_whatever_hides_it(
    build: Callable[[], onnx.ModelProto], name: str, algebra: Callable[[Algebra], None]
) -> None:
    algebra(WRONG[name])
    with pytest.raises(CheckFailedError, match=r"not equal|not shown"):
        convbn.fuse(build())


def by_channel(factors: list[float]) -> onnx.ModelProto:
    """Channels of a depthwise convolution, each as loud as its factor."""
    nodes = [
        node("Mul", "x", "k", "m"),
        node("Abs", "m", "l"),
        helper.make_node("Conv", ["l", "w"], ["c"], name="conv", group=len(factors)),
        batchnorm("c", "y"),
    ]
    count = len(factors)
    held = {"k": np.float32(factors).reshape(1, -1, 1, 1), "w": random(count, 1, 3, 3)}
    return model(nodes, {"x": [1, count, 10, 10]}, ["y"], {**held, **batchnorm_parameters(count)})


def test_a_quiet_channel_is_seen_beside_a_loud_one(algebra: Callable[[Algebra], None]) -> None:
    built = by_channel([1.0, 1e7, 1e7])
    assert convbn.fuse(built).report.verify["status"] == "equal"
    algebra(WRONG["one scale doubled"])
    with pytest.raises(CheckFailedError, match="is computed otherwise"):
        convbn.fuse(built)


def test_a_channel_without_a_signal_refuses_nothing() -> None:
    proof = convbn.fuse(by_channel([1.0, 0.0, 1.0])).report.verify["proof"]
    assert proof["wrong"] == []
    assert [fold["how"] for fold in proof["folds"]] == ["float64"]


def test_weights_that_all_round_the_same_way_refuse_nothing(algebra: Callable[[Algebra], None]) -> None:
    """A sum as a layer: what its one number is off by adds up, six hundred times."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    held = {"w": np.full((6, 64, 3, 3), 0.1, np.float32), **batchnorm_parameters(6)}
    built = model(nodes, {"x": [1, 64, 8, 8]}, ["y"], held)
    inputs = {"x": 1 + 0.01 * np.abs(random(1, 64, 8, 8))}
    report = convbn.fuse(built, inputs=inputs).report
    assert report.batchnorm.after == 0
    assert report.verify["proof"]["wrong"] == []
    algebra(lambda g, b, m, v, s, t: (s * (1 + 1e-6), t))
    with pytest.raises(CheckFailedError, match="is computed otherwise"):
        convbn.fuse(built, inputs=inputs)


def test_a_fold_that_nothing_can_see_is_named_and_refused() -> None:
    """Its layer is fed with zeros, so that any scale would do."""
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["n"], name="none"),
        helper.make_node("Conv", ["n", "w"], ["c"], name="conv"),
        batchnorm("c", "b"),
        helper.make_node("GlobalAveragePool", ["x"], ["p"], name="pool"),
        helper.make_node("Concat", ["b", "x"], ["y"], axis=1, name="concat"),
    ]
    held = {"w": random(6, 3, 1, 1), "zero": np.zeros(1, np.float32), **batchnorm_parameters(6)}
    with pytest.raises(CheckFailedError, match=r"no comparison could see a fold \(bn\)"):
        convbn.fuse(model(nodes, {"x": [1, 3, 10, 10]}, ["y"], held))


def test_a_map_that_nothing_was_folded_from_is_not_asked_for() -> None:
    plain = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 3]}, ["y"], {})
    assert convbn.fuse(plain).report.verify["status"] == "equal"


def test_a_fold_that_takes_a_wrong_value_for_changed_on_purpose_is_no_proof() -> None:
    """What the plan says of a value frees that value alone."""
    from convbn.bench.equivalence.compare import compare
    from convbn.bench.proof.prove import FoldPlan

    original = layer([node("Relu", "b", "y")])
    result = convbn.fuse(original)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(result.model)
    for tensor in wrong.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(tensor), tensor.name)
            )
    plan = FoldPlan((("bn", ("conv",)),), ("c", "b"))
    assert compare(original, result.model, plan=plan).status == "equal"
    assert compare(original, wrong, plan=plan).status == "different"


def test_outputs_of_a_batchnorm_without_names_do_not_end_the_process() -> None:
    built = layer([node("Relu", "b", "y")])
    built.opset_import[0].version = 17
    built.graph.node[1].output.extend(["", ""])
    assert convbn.verify(built, built)
    assert convbn.fuse(built).report.verify["status"] == "equal"


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_types_are_proven_too(kind: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    held = {"w": random(6, 3, 3, 3).astype(dtype), **batchnorm_parameters(6, dtype=dtype)}
    built = model(nodes, {"x": [2, 3, 8, 8]}, ["y"], held, elem_type=kind, opset=22)
    report = convbn.fuse(built).report
    assert report.verify["status"] == "equal"
    assert [fold["how"] for fold in report.verify["proof"]["folds"]] == ["float64"]


@pytest.mark.parametrize("opset", [9, 13])
def test_float64_below_opset_14_is_not_normalised_by_the_batch(opset: int) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    held = {"w": random(6, 3, 3, 3, dtype=np.float64), **batchnorm_parameters(6, dtype=np.float64)}
    built = model(nodes, {"x": [2, 3, 8, 8]}, ["y"], held, opset=opset, elem_type=TensorProto.DOUBLE)
    assert convbn.fuse(built).report.verify["status"] == "equal"


def test_folds_in_a_body_are_judged_by_the_node_that_has_it() -> None:
    body = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "t")]
    branch = helper.make_graph(body, "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["e"], name="plain")],
        "else",
        [],
        [helper.make_tensor_value_info("e", 1, None)],
    )
    nodes = [helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=other)]
    held = {"flag": np.array(True), "w": random(6, 3, 3, 3), **batchnorm_parameters(6)}
    built = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], held)
    report = convbn.fuse(built).report
    assert report.batchnorm.after == 0
    assert report.verify["status"] == "equal"


def test_a_bias_that_cancels_the_sum_beside_it_may_be_rounded() -> None:
    """What is left is small, and one draw of noise hits the rounding of so many channels only by chance."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(64, 2048, 1, bias=False), torch.nn.BatchNorm2d(2048)
    x = 1 + 1e-3 * torch.randn(1, 64, 12, 12)
    with torch.no_grad():
        norm.running_mean.copy_(conv(x).mean((0, 2, 3)))
    _, report = convbn.fuse(torch.nn.Sequential(conv, norm).eval(), x)
    assert report.verify["status"] == "equal"


@pytest.mark.parametrize("node", [True, False])
def test_a_stored_number_that_a_fold_took_up_is_no_value(node: bool) -> None:
    """In ``(x·W + b)·z·½`` the ½ goes into W and b; what then stands in its place is z, wherever the ½ was stored."""
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    weight, bias = random(4, 6), random(6, seed=1)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], "product"),
        helper.make_node("Add", ["xw", "b"], ["y"], "bias"),
        helper.make_node("Mul", ["y", "z"], ["p"], "by_value"),
        helper.make_node("Mul", ["p", "half"], ["q"], "by_half"),
        helper.make_node("Sin", ["q"], ["out"], "sine"),
    ]
    stored = [
        numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in (("w", weight), ("b", bias))
    ]
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["half"], "constant", value=half), *nodes] if node else nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, n]) for name, n in (("x", 4), ("z", 6))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [3, 6])],
        stored if node else [*stored, half],
    )
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folded, report = convbn.fuse(given)
    assert report.verify["status"] == "equal"
    assert [one.op_type for one in folded.graph.node if one.op_type != "Constant"] == ["Gemm", "Mul", "Sin"]
