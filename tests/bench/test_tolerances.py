"""Comparing a lower precision: tolerances, likeness, and float16 rounded where a CPU would not round."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import model, random, run

from convbn.bench.equivalence.compare import compare
from convbn.bench.equivalence.difference import judge
from convbn.bench.equivalence.half_emulation import rounded_graph
from convbn.bench.equivalence.tolerance import bound_of, tolerance_of
from convbn.errors import UsageError


def outputs(*arrays: np.ndarray) -> list[list[np.ndarray]]:
    return [[array] for array in arrays]


def test_where_the_bounds_come_from() -> None:
    for precision, dtype in (("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")):
        assert tolerance_of(precision).bound == bound_of(dtype)
        assert tolerance_of(precision).norm == "max"
    assert tolerance_of("int8").norm == "rms"
    given = tolerance_of("int8", 0.01)
    assert (given.bound, given.norm, given.source) == (0.01, "rms", "given")


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_bounds_that_bound_nothing(bound: float) -> None:
    with pytest.raises(UsageError, match="bounds nothing"):
        tolerance_of("fp16", bound)


def test_an_unknown_precision() -> None:
    with pytest.raises(UsageError, match="no tolerance for precision 'fp8'; choose fp32, fp16, bf16, int8"):
        tolerance_of("fp8")


def test_likeness() -> None:
    a = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    b = np.array([[4.0, 3.0], [1.0, 0.0]], np.float32)
    verdict = judge(["y"], outputs(a), outputs(b), inputs_differ=False, tolerance=tolerance_of("int8", 1.0))
    (found,) = verdict.outputs
    assert found.rms_error == pytest.approx(math.sqrt(2 / 26))
    assert found.cosine == pytest.approx(25 / 26)
    assert found.top1_agreement == 0.5


def test_likeness_of_values_whose_squares_overflow() -> None:
    a = np.array([[1e200, -1e200]])
    verdict = judge(
        ["y"], outputs(a), outputs(a * 0.5), inputs_differ=False, tolerance=tolerance_of("int8", 0.6)
    )
    assert verdict.outputs[0].rms_error == pytest.approx(0.5)
    assert verdict.outputs[0].cosine == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(6,), (2, 1), (2, 3, 1)])
def test_what_is_no_classifier_has_no_classes(shape: tuple[int, ...]) -> None:
    a = np.arange(6, dtype=np.float32).reshape(-1)[: math.prod(shape)].reshape(shape)
    verdict = judge(["y"], outputs(a), outputs(a), inputs_differ=False)
    assert verdict.outputs[0].top1_agreement is None


def test_zeros_have_no_direction() -> None:
    zero, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    verdict = judge(["y"], outputs(zero), outputs(one), inputs_differ=False, tolerance=tolerance_of("int8"))
    assert verdict.status == "different"
    assert verdict.outputs[0].cosine is None
    assert verdict.outputs[0].to_dict()["rms_error"] is None


def test_int8_is_judged_by_the_rms() -> None:
    """One value far off in a thousand is noise; all of them a little too far is not."""
    a = random(1, 1000)
    spike, shifted = a.copy(), a * np.float32(1.3)
    spike[0, 3] += 4
    int8 = tolerance_of("int8")
    assert judge(["y"], outputs(a), outputs(spike), inputs_differ=False, tolerance=int8).status == "equal"
    verdict = judge(["y"], outputs(a), outputs(shifted), inputs_differ=False, tolerance=int8)
    assert verdict.status == "different"
    assert "relative RMS error 0.3 is over the bound 0.25" in verdict.reason


def test_other_float_types_only_with_a_tolerance() -> None:
    a = random(2, 8)
    half = a.astype(np.float16)
    assert (
        "is float32 in the reference and float16"
        in judge(["y"], outputs(a), outputs(half), inputs_differ=False).reason
    )
    fp16 = tolerance_of("fp16")
    assert judge(["y"], outputs(a), outputs(half), inputs_differ=False, tolerance=fp16).status == "equal"
    verdict = judge(["y"], outputs(a), outputs(a.astype(np.int32)), inputs_differ=False, tolerance=fp16)
    assert verdict.status == "different"


def half(nodes: list[onnx.NodeProto], shape: list[int], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    return model(nodes, {"x": shape}, ["y"], weights, elem_type=TensorProto.FLOAT16)


def test_float16_inputs_are_given_float16() -> None:
    single = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 8]}, ["y"], {})
    lower = half([helper.make_node("Relu", ["x"], ["y"])], [2, 8], {})
    assert compare(single, lower, tolerance=tolerance_of("fp16")).equal
    assert compare(single, lower).status == "different"


def test_rounding_after_every_node() -> None:
    """x·x overflows in float16 at 256; in float32 the root brings it back."""
    nodes = [helper.make_node("Mul", ["x", "x"], ["s"]), helper.make_node("Sqrt", ["s"], ["y"])]
    lower = half(nodes, [3], {})
    before = lower.SerializeToString()
    x = np.array([2, 255, 257], np.float16)
    rounded = rounded_graph(lower)
    assert rounded is not None
    assert lower.SerializeToString() == before
    onnx.checker.check_model(rounded, full_check=True)
    np.testing.assert_allclose(run(rounded, {"x": x})[0][:2], [2, 255], rtol=1e-3)
    assert np.isinf(run(rounded, {"x": x})[0][2])


def test_rounding_goes_to_nearest_once() -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    rounded = rounded_graph(half(nodes, [2], {"w": np.array([1e-4, 1e-3], np.float16)}))
    assert rounded is not None
    np.testing.assert_array_equal(
        run(rounded, {"x": np.ones(2, np.float16)})[0],
        (np.float32(1) + np.array([1e-4, 1e-3], np.float16).astype(np.float32)).astype(np.float16),
    )


def test_casts_and_constants_are_widened() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([2], np.float16))),
        helper.make_node("Mul", ["h", "c"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    rounded = rounded_graph(model(nodes, {"x": [3]}, ["y"], {}))
    assert rounded is not None
    onnx.checker.check_model(rounded, full_check=True)
    x = np.array([1 / 3, 40000, 2], np.float32)
    np.testing.assert_array_equal(run(rounded, {"x": x})[0], [np.float32(np.float16(1 / 3)) * 2, np.inf, 4])


def test_what_cannot_be_rounded_is_said() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"])], "b", [], [helper.make_tensor_value_info("t", 10, None)]
    )
    nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
    lower = half(nodes, [2, 8], {"flag": np.array(True)})
    assert rounded_graph(lower) is None
    single = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 8]}, ["y"], {})
    lower.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float16), "unused"))
    answer = compare(single, lower, tolerance=tolerance_of("fp16"))
    assert answer.equal
    assert "which computes float16 in float32" in answer.runtime
