"""Operators that exporters write in the place of common ones, recurrent layers, and constants that are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, operators, random, relative_error, run

from convbn.fuse.fold import fold

node = helper.make_node
X = (2, 4, 6, 5)
WEIGHTS = {"w": random(4, 4, 1, 1), "w2": random(4, 4, 1, 1, seed=2), "w3": random(4, 4, 1, 1, seed=3)}
CONV = node("Conv", ["x", "w"], ["c"])


def fold_of(
    nodes: list[onnx.NodeProto],
    stored: dict[str, np.ndarray] | None = None,
    *,
    positive: bool = False,
    opset: int = 17,
    shape: tuple[int, ...] = X,
    bound: float = 2e-5,
) -> tuple[list[str], list[str]]:
    """The operators that are left, and why BatchNorms stay; the outputs are those of before."""
    parameters = batchnorm_parameters(4)
    if positive:
        parameters["bn.gamma"] = np.abs(parameters["bn.gamma"])
    read, made = {name for n in nodes for name in n.input}, {name for n in nodes for name in n.output}
    arrays = {k: v for k, v in {**WEIGHTS, **parameters, **(stored or {})}.items() if k in read - made}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    result = fold(model)
    feeds = {"x": random(*shape, seed=3)}
    assert relative_error(run(model, feeds), run(result.model, feeds)) < bound
    return operators(result.model), [str(kept.reason) for kept in result.report.kept]


def stays(*given: Any, **options: Any) -> bool:
    return "BatchNormalization" in fold_of(*given, **options)[0]


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["Sum", "Mean"])
def test_sums_and_means(kind: str, terms: int) -> None:
    names = ["w", "w2", "w3", "w4"][:terms]
    layers = [node("Conv", ["x", w], [f"c{w}"]) for w in names]
    summed = node(kind, [f"c{w}" for w in names], ["b"])
    assert not stays([*layers, summed, batchnorm("b", "y")], {"w4": random(4, 4, 1, 1, seed=4)})


@pytest.mark.parametrize("kind", ["Sum", "Mean"])
def test_a_batchnorm_in_front_of_a_sum_of_three(kind: str) -> None:
    nodes = [
        node("Sigmoid", ["x"], ["a"]),
        batchnorm("a", "n"),
        *(node("Conv", ["x", w], [f"c{w}"]) for w in ("w", "w2")),
        node(kind, ["cw", "n", "cw2"], ["s"]),
        node("Conv", ["s", "w3"], ["y"]),
    ]
    assert not stays(nodes)


def test_a_sum_with_a_term_that_has_other_channels() -> None:
    nodes = [CONV, node("Sum", ["c", "row", "c"], ["b"]), batchnorm("b", "y")]
    assert fold_of(nodes, {"row": random(1, 1, 1, 5)})[1] == ["axis-not-proven"]


@pytest.mark.parametrize("in_front", [False, True])
def test_negation(in_front: bool) -> None:
    if in_front:
        nodes = [node("Sigmoid", ["x"], ["a"]), batchnorm("a", "n"), node("Neg", ["n"], ["m"])]
        assert not stays([*nodes, node("Conv", ["m", "w"], ["y"])])
    else:
        assert not stays([CONV, node("Neg", ["c"], ["b"]), batchnorm("b", "y")])


BOUNDS = {"zero": np.float32(0), "one": np.float32(1), "inf": np.float32(np.inf)}
HALF_LINES = {
    "clip from 0": (node("Clip", ["c", "zero"], ["a"]), True),
    "clip to 0": (node("Clip", ["c", "", "zero"], ["a"]), True),
    "clip to infinity": (node("Clip", ["c", "zero", "inf"], ["a"]), True),
    "clip to 1": (node("Clip", ["c", "zero", "one"], ["a"]), False),
    "max": (node("Max", ["c", "zero"], ["a"]), True),
    "min": (node("Min", ["c", "zero"], ["a"]), True),
    "max with 1": (node("Max", ["c", "one"], ["a"]), False),
}


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("case", HALF_LINES)
def test_what_is_a_relu(case: str, positive: bool) -> None:
    """A positive scale passes a clip at 0, on its way to a convolution; a negative one does not."""
    activation, passes = HALF_LINES[case]
    nodes = [CONV, activation, node("Neg", ["a"], ["b"]), batchnorm("b", "y")]
    stored = {**BOUNDS, "bn.beta": np.zeros(4, "f4"), "bn.mean": np.zeros(4, "f4")}
    assert stays(nodes, stored, positive=positive) is not (passes and positive)


@pytest.mark.parametrize(("told", "passes"), [(False, True), (None, True)])
def test_a_dropout_that_is_told(told: bool | None, passes: bool) -> None:
    dropout = node("Dropout", ["c", "ratio", *(["told"] if told is not None else [])], ["b"])
    stored = {"ratio": np.float32(0.5), "told": np.asarray(told)}
    assert stays([CONV, dropout, batchnorm("b", "y")], stored) is not passes


@pytest.mark.parametrize(("kernel", "passes"), [(1, True), (3, False)])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_that_is_left_to_the_runtime(kernel: int, passes: bool, auto_pad: str, stride: int) -> None:
    nodes = [
        node("Sigmoid", ["x"], ["a"]),
        batchnorm("a", "n"),
        node("Conv", ["n", "k"], ["y"], auto_pad=auto_pad, strides=[stride] * 2),
    ]
    assert stays(nodes, {"k": random(3, 4, kernel, kernel)}) is not passes


def test_statistics_of_positions_where_there_are_none() -> None:
    nodes = [node("Gemm", ["x", "m", "row"], ["b"]), batchnorm("b", "y", spatial=0)]
    assert not stays(nodes, {"m": random(6, 4), "row": random(4)}, opset=8, shape=(3, 6))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_recurrent_layer(kind: str, gates: int, direction: str, bias: bool) -> None:
    """``[N, C, L]`` is normalised and read as ``[L, N, C]``."""
    both, hidden = 1 + (direction == "bidirectional"), 3
    stored = {
        "wx": random(both, gates * hidden, 4, seed=5),
        "wh": random(both, gates * hidden, hidden, seed=6),
        "wb": random(both, 2 * gates * hidden, seed=7),
    }
    nodes = [
        node("Sigmoid", ["x"], ["a"]),
        batchnorm("a", "n"),
        node("Transpose", ["n"], ["t"], perm=[2, 0, 1]),
        node(kind, ["t", "wx", "wh", *["wb"][:bias]], ["y"], hidden_size=hidden, direction=direction),
    ]
    assert not stays(nodes, stored, shape=(2, 4, 6))


def test_a_recurrent_layer_that_reads_the_channels_as_a_sequence() -> None:
    nodes = [
        node("Sigmoid", ["x"], ["a"]),
        batchnorm("a", "n"),
        node("RNN", ["n", "wx", "wh"], ["y"], hidden_size=3),
    ]
    stored = {"wx": random(1, 3, 4), "wh": random(1, 3, 3)}
    assert fold_of(nodes, stored, shape=(2, 4, 4))[1]


@pytest.mark.parametrize("back", [False, True])
def test_a_batchnorm_between_casts(back: bool) -> None:
    nodes = [
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        node("Conv", ["h", "half"], ["c"]),
        node("Cast", ["c"], ["b"], to=TensorProto.FLOAT),
        batchnorm("b", "n"),
        *([node("Cast", ["n"], ["r"], to=TensorProto.FLOAT16)] if back else []),
        node("Cast", ["r" if back else "n"], ["y"], to=TensorProto.FLOAT),
    ]
    assert not stays(nodes, {"half": WEIGHTS["w"].astype("f2")}, bound=5e-3)


def test_no_addition_of_half_precision_takes_the_place_of_a_batchnorm_in_float32() -> None:
    """The scale could go into the product, and the shift would be left to an Add of the other type."""
    nodes = [
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        node("MatMul", ["h", "m"], ["c"]),
        node("Sigmoid", ["c"], ["g"]),
        node("MatMul", ["h", "m"], ["d"]),
        node("Mul", ["d", "g"], ["p"]),
        node("Transpose", ["p"], ["t"], perm=[0, 2, 1]),
        node("Cast", ["t"], ["b"], to=TensorProto.FLOAT),
        batchnorm("b", "y"),
    ]
    assert stays(nodes, {"m": random(6, 4).astype("f2")}, shape=(2, 3, 6), bound=5e-3)


def test_a_cast_from_integers_passes_nothing() -> None:
    nodes = [
        node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        node("Add", ["i", "one"], ["j"]),
        node("Cast", ["j"], ["b"], to=TensorProto.FLOAT),
        batchnorm("b", "y"),
    ]
    assert stays(nodes, {"one": np.ones((1, 4, 1, 1), "i4")})


COMPUTED = {
    "norm": [node("ReduceL2", ["w"], ["l"], axes=[1, 2, 3]), node("Div", ["w", "l"], ["k"])],
    "sum of magnitudes": [node("ReduceL1", ["w"], ["l"], axes=[1, 2, 3]), node("Div", ["w", "l"], ["k"])],
    "sum": [node("ReduceSum", ["w"], ["l"]), node("Div", ["w", "l"], ["k"])],
    "square root": [node("Abs", ["w"], ["p"]), node("Sqrt", ["p"], ["k"])],
    "power": [node("Abs", ["w"], ["p"]), node("Pow", ["p", "third"], ["k"])],
    "exponent": [node("Exp", ["w"], ["k"])],
    "reciprocal": [node("Exp", ["w"], ["p"]), node("Reciprocal", ["p"], ["k"])],
    "product": [node("MatMul", ["u", "v"], ["l"]), node("Div", ["w", "l"], ["k"])],
}


@pytest.mark.parametrize("case", COMPUTED)
def test_a_weight_that_is_computed_from_constants(case: str) -> None:
    nodes = [*COMPUTED[case], node("Conv", ["x", "k"], ["b"]), batchnorm("b", "y")]
    stored = {"third": np.float32(1 / 3), "u": random(5, seed=8), "v": random(5, seed=9)}
    assert fold_of(nodes, stored)[0] == ["Conv"]


def test_statistics_that_are_stored_as_integers() -> None:
    names = ["gamma", "beta", "mean", "var"]
    nodes = [
        CONV,
        *(node("DequantizeLinear", [f"q{name}", "unit", "zero"], [f"bn.{name}"]) for name in names),
        batchnorm("c", "y"),
    ]
    stored = {f"q{name}": np.int8([20, 90, 7 * i + 9, 60]) for i, name in enumerate(names)}
    assert fold_of(nodes, {**stored, "unit": np.float32(0.01), "zero": np.int8(-3)})[0] == ["Conv"]


@pytest.mark.parametrize("beta", [1.0, -0.5, 0.0])
@pytest.mark.parametrize("bias", [(3, 4), (3, 1), (4,), None])
@pytest.mark.parametrize("in_front", [False, True])
def test_the_bias_of_a_gemm(bias: tuple[int, ...] | None, beta: float, in_front: bool) -> None:
    """One number an output, a row or both; none that counts where β is 0."""
    gemm = ["m", *(["k"] if bias else [])]
    stored = {"m": random(4, 4), **({"k": random(*bias, seed=8)} if bias else {})}
    if in_front:
        nodes = [
            node("Sigmoid", ["x"], ["a"]),
            batchnorm("a", "n"),
            node("Gemm", ["n", *gemm], ["y"], beta=beta, alpha=0.7),
        ]
    else:
        nodes = [node("Gemm", ["x", *gemm], ["b"], beta=beta, alpha=0.7), batchnorm("b", "y")]
    assert not stays(nodes, stored, shape=(3, 4))
