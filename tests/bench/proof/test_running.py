"""Models and their parts, run as they stand, from files, and in float64; and values compared one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

import convbn
from convbn.bench.models.errors import SessionError
from convbn.bench.proof.graph.execution import Runner, _evaluator, in_float64, widened
from convbn.bench.proof.graph.whole import Whole

DOUBLE = TensorProto.DOUBLE


def node(op: str, reads: str, gives: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), gives.split(), **attributes)


def doubles() -> onnx.ModelProto:
    """Convolutions of float64, for which onnxruntime has no kernel, and another output."""
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "y"), node("Neg", "c", "z")]
    held = {"w": random(64, 3, 1, 1, dtype=np.float64)}  # a kilobyte and more stays in its file
    return model(nodes, {"x": [1, 3, 4, 4]}, ["y", "z"], held, elem_type=DOUBLE)


X = {"x": random(1, 3, 4, 4, dtype=np.float64)}


@pytest.mark.parametrize("outside", [None, False, True])
def test_what_onnxruntime_cannot_run_onnxs_evaluator_does(tmp_path: Path, outside: bool | None) -> None:
    built: Any = doubles()
    if outside is not None:
        built = tmp_path / "m.onnx"
        onnx.save(doubles(), built, save_as_external_data=outside, location="m.data", size_threshold=0)
    with Whole(built, "whole") as whole:
        found = whole.values(X, ["z", "c"])
        assert whole.runtime == "onnx reference evaluator"
        np.testing.assert_allclose(found["z"], -found["c"])
        expected = np.einsum("oi,nihw->nohw", random(64, 3, 1, 1, dtype=np.float64)[:, :, 0, 0], X["x"])
        np.testing.assert_allclose(found["c"], expected)


def test_some_outputs_are_given_by_their_names() -> None:
    runner = Runner(doubles(), "model")
    both = runner.run(X)
    assert list(both) == ["y", "z"]
    assert list(runner.run(X, ["z"])) == ["z"]
    np.testing.assert_array_equal(runner.run(X, ["z"])["z"], both["z"])
    plain = Runner(
        model([node("Relu", "x", "y"), node("Neg", "x", "z")], {"x": [2]}, ["y", "z"], {}), "model"
    )
    assert plain.runtime == "onnxruntime-cpu@off"
    assert plain.run({"x": np.float32([1, -1])}, ["z"])["z"].tolist() == [-1, 1]


def test_what_neither_can_run_is_an_error_of_the_models_role() -> None:
    uneven = model([node("Conv", "x w", "y")], {"x": [1, 3, "h", 4]}, ["y"], {"w": random(2, 5, 1, 1)})
    assert in_float64(uneven, [{"x": random(1, 3, 4, 4)}]) is None
    wide = model([node("Conv", "x w", "y")], {"x": [1, 3, "h", 4]}, ["y"], {"w": X["x"]}, elem_type=DOUBLE)
    with pytest.raises(
        SessionError, match="neither onnxruntime nor onnx's reference evaluator can run"
    ) as caught:
        Runner(wide, "candidate").run({"x": X["x"][:, :2]})
    assert caught.value.source == "candidate"


@pytest.mark.filterwarnings("error")
def test_float64_warns_of_nothing_and_leaves_other_numbers() -> None:
    nodes = [node("Gather", "table i", "g"), node("Sqrt", "g", "y")]
    built = model(
        nodes, {"i": [2]}, ["y"], {"table": np.float32([[0.1], [-1.0]])}, elem_type=TensorProto.INT64
    )
    (given,) = in_float64(built, [{"i": np.int64([0, 1])}]) or [{}]
    assert given["y"][0, 0] == np.sqrt(np.float64(np.float32(0.1)))
    assert np.isnan(given["y"][1, 0])


def test_bodies_and_functions_are_widened_too() -> None:
    value = helper.make_tensor_value_info
    third = numpy_helper.from_array(np.float32([1 / 3]), "third")
    body = helper.make_graph(
        [node("Constant", "", "k", value=third), node("Mul", "x k", "m"), node("Cast", "m", "t", to=1)],
        "then",
        [],
        [value("t", 1, None)],
    )
    other = helper.make_graph([node("Mul", "x half", "e")], "else", [], [value("e", 1, None)])
    other.initializer.append(numpy_helper.from_array(np.float16([0.1]), "half"))
    function = helper.make_function(
        "own",
        "Thirds",
        ["a"],
        ["o"],
        [node("Constant", "", "k", value=third), node("Mul", "a k", "o")],
        [helper.make_opsetid("", 20)],
    )
    nodes = [
        node("If", "flag", "y", then_branch=body, else_branch=other),
        node("Thirds", "x", "z", domain="own"),
        node("RandomNormal", "", "r", dtype=1, shape=[1]),
        node("Constant", "", "whole", value=numpy_helper.from_array(np.int64([1]))),
        node("Constant", "", "number", value_float=0.5),
    ]
    wide = widened(model(nodes, {"x": [1]}, ["y", "z"], {"flag": np.array(True)}, functions=[function]))
    then, otherwise = (entry.g for entry in wide.graph.node[0].attribute)
    then, otherwise = (then, otherwise) if then.name == "then" else (otherwise, then)
    exact = np.float64(np.float32(1 / 3))
    for constant in (then.node[0], wide.functions[0].node[0]):
        stored = numpy_helper.to_array(constant.attribute[0].t)
        assert (stored.dtype, stored[0]) == (np.float64, exact)
    assert then.node[2].attribute[0].i == DOUBLE
    assert numpy_helper.to_array(otherwise.initializer[0]).dtype == np.float64
    assert {entry.name: entry.i for entry in wide.graph.node[2].attribute}["dtype"] == DOUBLE
    assert numpy_helper.to_array(wide.graph.node[3].attribute[0].t).dtype == np.int64


@pytest.mark.parametrize("opset", [9, 13, 14, 20])
def test_a_batchnorm_is_that_of_inference_in_its_own_type(opset: int) -> None:
    parameters = batchnorm_parameters(3)
    built = model([batchnorm("x", "y", epsilon=0.5)], {"x": [2, 3, 4]}, ["y"], parameters, opset=opset)
    x = random(2, 3, 4)
    (given,) = _evaluator(built).run(None, {"x": x})
    gamma, beta, mean, var = (parameters[f"bn.{name}"][:, None] for name in ("gamma", "beta", "mean", "var"))
    np.testing.assert_allclose(given, gamma * (x - mean) / np.sqrt(var + 0.5) + beta, rtol=1e-5)
    assert given.dtype == np.float32
    plain = model([batchnorm("x", "y")], {"x": [2, 3, 4]}, ["y"], parameters, opset=opset)
    (given,) = _evaluator(plain).run(None, {"x": x})
    np.testing.assert_allclose(given, gamma * (x - mean) / np.sqrt(var + 1e-5) + beta, rtol=1e-5)


# Values compared one by one.


def steep(factor: float) -> onnx.ModelProto:
    nodes = [node("Mul", "x k", "m"), node("Sin", "m", "y"), node("Shape", "x", "s")]
    built = model(nodes, {"x": [4, 8]}, ["y", "s"], {"k": np.float32([factor])})
    built.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    return built


def test_a_value_may_move_as_far_as_the_reference_itself_does() -> None:
    rows = {row.value: row for row in convbn.compare_layers(steep(1e5), steep(1e5 * (1 + 1e-7))).rows}
    assert rows["m"].bound == 2.0**-11.5
    assert (rows["s"].bound, rows["s"].error, rows["s"].same) == (0.0, 0.0, True)
    assert rows["y"].bound > 0.01
    assert 2.0**-11.5 < rows["y"].error < rows["y"].bound
    assert rows["y"].same
    assert not convbn.compare_layers(steep(1e5), steep(1.01e5)).rows[1].same


def test_the_first_difference_is_the_first_that_reaches_an_output() -> None:
    """``a`` differs too, and what reads it gives the same again."""

    def scaled(first: float, last: float) -> onnx.ModelProto:
        nodes = [
            node("Mul", "x k", "a"),
            node("Mul", "a n", "b"),
            node("Relu", "b", "c"),
            node("Mul", "c l", "y"),
        ]
        held = {"k": np.float32([first]), "n": np.float32([1 / first]), "l": np.float32([last])}
        return model(nodes, {"x": [2, 8]}, ["y"], held)

    found = convbn.compare_layers(scaled(1.0, 1.0), scaled(2.0, 3.0))
    assert [(row.value, row.same) for row in found.rows] == [
        ("a", False),
        ("b", True),
        ("c", True),
        ("y", False),
    ]
    assert found.first is not None
    assert found.first.value == "y"
    assert convbn.compare_layers(scaled(1.0, 1.0), scaled(2.0, 1.0)).first is None
