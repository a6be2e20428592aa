"""int8: what is quantised, in a form that TensorRT's parser takes, and only after folding."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.bench.equivalence.half_emulation import rounded_graph
from convbn.errors import UsageError
from convbn.export.engines.build.build import build_engine
from convbn.export.precision.convert import Converted, convert
from convbn.export.precision.errors import CalibrationError, PrecisionError, QuantisationOrderError
from convbn.export.precision.int8.calibration import calibration_from
from convbn.export.precision.int8.samples import Calibration
from convbn.export.precision.options import METHODS, PrecisionOptions

X = {"x": random(2, 3, 8, 8, seed=9)}


def network(*, opset: int = 20) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["h"], name="gemm", transB=1),
        helper.make_node("MatMul", ["h", "mix"], ["y"], name="matmul"),
    ]
    weights = {"w": random(6, 3, 3, 3), "b": random(6, seed=1), "head": random(4, 6, seed=2)}
    weights |= {"bias": random(4, seed=4), "mix": random(4, 5, seed=5)}
    # Channels of very different size: per-tensor scales would lose the small ones.
    weights["w"] *= np.float32(10.0) ** np.arange(-3, 3, dtype=np.float32)[:, None, None, None]
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], weights, opset=opset)


def data(built: onnx.ModelProto, count: int = 6) -> Calibration:
    return calibration_from([random(2, 3, 8, 8, seed=i) for i in range(count)], built)


def int8(built: onnx.ModelProto, **options: Any) -> Converted:
    return convert(built, "int8", calibration=data(built), options=PrecisionOptions(**options))


@pytest.mark.parametrize("opset", [11, 13, 20])
@pytest.mark.parametrize("method", METHODS)
def test_the_three_operators_are_quantised_and_close(method: str, opset: int) -> None:
    built = network(opset=opset)
    before = built.SerializeToString()
    result = int8(built, method=method)
    assert built.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    assert result.record["quantised"] == ["conv", "gemm", "matmul"]
    assert operators(result.model).count("QuantizeLinear") == 3
    assert operators(result.model).count("DequantizeLinear") == 6
    assert relative_error(run(built, X), run(result.model, X)) < (0.05 if method != "entropy" else 0.25)


def test_weights_have_a_scale_a_channel_and_biases_none() -> None:
    result = int8(network(), equalise=False).model
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    read = [n for n in result.graph.node if n.op_type == "DequantizeLinear"]
    weights = {
        n.input[0].removesuffix("_quantized"): [stored[name] for name in n.input]
        for n in read
        if n.input[0] in stored
    }
    assert {name: scale.shape for name, (_, scale, _) in weights.items()} == {
        "w": (6,), "head": (4,), "mix": (5,)
    }  # fmt: skip
    for array, _, point in weights.values():
        assert array.dtype == point.dtype == np.int8
        assert array.min() >= -127
        assert not point.any()
    scalars = [stored[n.input[1]] for n in read if n.input[0] not in stored]
    assert [scale.shape for scale in scalars] == [()] * 3
    assert stored["b"].dtype == stored["bias"].dtype == np.float32
    assert not any(array.dtype == np.int32 for array in stored.values())
    original = numpy_helper.to_array(next(t for t in network().graph.initializer if t.name == "w"))
    np.testing.assert_allclose(weights["w"][1], np.abs(original).reshape(6, -1).max(axis=1) / 127, rtol=1e-2)


def test_ranges_are_those_of_the_data() -> None:
    built = network()
    result = int8(built, method="minmax")
    largest = max(float(np.abs(sample["x"]).max()) for sample in data(built).samples())
    assert result.record["ranges"]["x"] == pytest.approx(largest, rel=0.01)
    assert result.record["calibration"] == {"origin": "Python", "samples": 6}
    lower = int8(built, method="percentile", percentile=90.0)
    assert lower.record["method"] == "percentile 90"
    assert lower.record["ranges"]["x"] < 0.7 * largest


def test_nodes_and_operators_can_be_left_out() -> None:
    result = int8(network(), keep_fp32=("gemm",), quantise=("Conv", "Gemm"))
    assert result.record["quantised"] == ["conv"]
    assert result.record["kept"] == [
        {"node": "gemm", "operator": "Gemm", "reason": "asked for", "detail": "the options name it"}
    ]
    with pytest.raises(PrecisionError, match="nothing to quantise: no Conv outside"):
        int8(network(), keep_fp32=("conv",), quantise=("Conv",))


def test_a_matmul_of_two_activations_is_left_alone() -> None:
    nodes = [helper.make_node("MatMul", ["x", "z"], ["m"], name="two"),
             helper.make_node("MatMul", ["m", "w"], ["y"], name="one")]  # fmt: skip
    built = model(nodes, {"x": [3, 3], "z": [3, 3]}, ["y"], {"w": random(3, 3)})
    calibration = calibration_from([{"x": random(3, 3), "z": random(3, 3, seed=1)}], built)
    record = convert(built, "int8", calibration=calibration).record
    assert record["quantised"] == ["one"]
    assert [(entry["node"], entry["reason"]) for entry in record["kept"]] == [("two", "operator")]


@pytest.mark.parametrize("opset", [13, 20, 22])
def test_the_rest_in_float16(opset: int) -> None:
    built = network(opset=opset)
    result = int8(built, rest="fp16")
    onnx.checker.check_model(result.model, full_check=True)
    assert result.record["quantised"] == ["conv", "gemm", "matmul"]
    assert result.record["kept"] == []
    types = {tensor.data_type for tensor in result.model.graph.initializer}
    assert types == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}
    rounded = rounded_graph(result.model)
    assert rounded is not None
    assert relative_error(run(built, X), run(rounded, X)) < 0.05


def test_quantised_weights_beyond_float16_stay_in_float32() -> None:
    built = network()
    weight = next(tensor for tensor in built.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e4), "w"))
    result = int8(built, rest="fp16")
    onnx.checker.check_model(result.model, full_check=True)
    assert {"conv", "relu"} <= {
        entry["node"] for entry in result.record["kept"] if entry["reason"] == "range"
    }
    rounded = rounded_graph(result.model)
    assert rounded is not None
    assert relative_error(run(built, X), run(rounded, X)) < 0.05


def test_onnxruntime_is_quiet(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        int8(network(), method="entropy")
    assert capsys.readouterr().out == ""
    assert caplog.text == ""


def test_metadata_stays_and_nothing_is_added() -> None:
    built = network()
    built.metadata_props.add(key="who", value="me")
    built.producer_name = "me too"
    result = int8(built).model
    assert {p.key: p.value for p in result.metadata_props} == {"who": "me"}
    assert result.producer_name == "me too"


def test_a_wrong_annotation_does_not_stop_calibration() -> None:
    built = network()
    built.graph.value_info.append(helper.make_tensor_value_info("f", 1, [2, 6, 1]))
    assert int8(built).record["quantised"] == ["conv", "gemm", "matmul"]


def test_without_data() -> None:
    with pytest.raises(UsageError, match="int8 needs calibration data; give --calibration PATH"):
        convert(network(), "int8")


def test_a_model_that_onnxruntime_cannot_run() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
             helper.make_node("Odd", ["c"], ["y"], domain="mine")]  # fmt: skip
    built = model(nodes[:1], {"x": [2, 3, 8, 8]}, ["c"], {"w": random(6, 3, 3, 3)})
    built.graph.node.append(nodes[1])
    built.opset_import.add(domain="mine", version=1)
    built.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, None))
    with pytest.raises(CalibrationError, match="onnxruntime cannot run the model on the calibration data"):
        int8(built)


def test_all_zero_data_calibrates_to_a_usable_scale() -> None:
    built = network()
    calibration = calibration_from([np.zeros((2, 3, 8, 8), np.float32)], built)
    result = convert(built, "int8", calibration=calibration)
    assert all(np.isfinite(array).all() for array in run(result.model, X))


def quantised_before_folding() -> onnx.ModelProto:
    """What a converter that knows nothing of BatchNorm makes: Conv, Q, DQ, BatchNorm."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        batchnorm("d", "y"),
    ]
    extra = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": random(6, 3, 3, 3)}
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {**extra, **batchnorm_parameters(6)})


def test_quantised_before_folding_passes_as_it_is() -> None:
    built = quantised_before_folding()
    assert convert(built, "as-is").model is built
    with pytest.raises(PrecisionError, match="carries int8"):
        convert(built, "fp16")


def test_quantised_before_folding_is_no_int8() -> None:
    told = "quantisation stands between Conv 'conv' and BatchNormalization 'bn'; fold the float model first"
    with pytest.raises(QuantisationOrderError, match=told) as error:
        convert(quantised_before_folding(), "int8")
    assert error.value.exit_code == 3


def test_a_batchnorm_behind_something_else_is_no_reason() -> None:
    built = quantised_before_folding()
    built.graph.node[0].CopyFrom(helper.make_node("MaxPool", ["x"], ["c"], name="conv", kernel_shape=[1, 1]))
    assert not convert(built, "as-is").changed


def test_a_quantised_model_passes_through_untouched() -> None:
    quantised = int8(network()).model
    for precision in ("as-is", "int8"):
        result = convert(quantised, precision)
        assert result.model is quantised
    for precision in ("fp32", "fp16", "bf16"):
        with pytest.raises(PrecisionError, match="carries int8; use precision as-is"):
            convert(quantised, precision)


@pytest.mark.parametrize(
    ("precision", "rest"), [("fp16", "fp32"), ("bf16", "fp32"), ("int8", "fp32"), ("int8", "fp16")]
)
def test_tensorrt_takes_it(tmp_path: Any, precision: str, rest: str) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    options = PrecisionOptions(rest=rest)
    result = convert(network(), precision, calibration=data(network()), options=options)
    artifact = build_engine(
        result.model, tmp_path / "a", backend="tensorrt-rtx", precision=precision, conversion=result.record
    )
    assert artifact.sidecar["conversion"] == result.record
    layers = dict(artifact.sidecar["layers"])  # type: ignore[call-overload]  # a dict, see the schema
    warned = any("int8 for weights alone" in told for told in artifact.sidecar["warnings"])  # type: ignore[attr-defined]
    assert warned is (precision == "int8")
    assert layers.get("QUANTIZE", 0) == (3 if precision == "int8" else 0)


def test_an_engine_is_not_called_what_its_model_is_not(tmp_path: Any) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    with pytest.raises(PrecisionError, match="does not carry fp16; convert it first"):
        build_engine(network(), tmp_path / "a", backend="tensorrt-rtx", precision="fp16")
    with pytest.raises(QuantisationOrderError):
        build_engine(quantised_before_folding(), tmp_path / "a", backend="tensorrt-rtx", precision="int8")
    assert not list(tmp_path.iterdir())
    build_engine(quantised_before_folding(), tmp_path / "a", backend="tensorrt-rtx")


@pytest.mark.parametrize("name", ["w_scale", "w_quantized", "x_zero_point", "r_QuantizeLinear_Output"])
def test_names_that_quantisation_would_give(name: str) -> None:
    """A value, and an output, have them already; everything is called as before."""
    for taken in ("r", "y"):
        built = network()
        for node in built.graph.node:
            for field in (node.input, node.output):
                field[:] = [name if value == taken else value for value in field]
        for value in built.graph.output:
            value.name = name if value.name == taken else value.name
        if taken == "r" and name.startswith("r_"):
            continue
        result = int8(built).model
        onnx.checker.check_model(result, full_check=True)
        run(result, X)
        assert [value.name for value in result.graph.output] == [value.name for value in built.graph.output]
        assert any(name in node.output for node in result.graph.node)
