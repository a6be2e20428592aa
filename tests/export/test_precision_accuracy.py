"""int8 that keeps its accuracy: ranges, biases, what each layer loses, and what is written with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.graphs import model, operators, random, run

from convbn.bench.equivalence.similarity import agreement, objection, warning
from convbn.bench.equivalence.tolerance import tolerance_of
from convbn.cli import main
from convbn.converting import Conversion, converted
from convbn.errors import CheckFailedError
from convbn.export.precision.convert import convert
from convbn.export.precision.int8.activations.threshold import Histogram, threshold
from convbn.export.precision.int8.calibration import calibration_from
from convbn.export.precision.options import PrecisionOptions

ROOT = Path(__file__).parents[2]


def classifier(outlier: float = 1.0, *, residual: bool = False) -> onnx.ModelProto:
    """Convolutions and a head; `outlier` makes one channel of the first so much larger than the others."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="one", pads=[1] * 4),
        helper.make_node("HardSwish", ["c1"], ["r1"], name="act1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="two", pads=[1] * 4),
        *([helper.make_node("Add", ["c2", "r1"], ["s"], name="sum")] if residual else []),
        helper.make_node("Relu", ["s" if residual else "c2"], ["r2"], name="act2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "head", "bias"], ["y"], name="head"),
    ]
    weights = {"w1": random(8, 3, 3, 3), "b1": random(8, seed=1), "w2": random(8, 8, 3, 3, seed=2) / 8}
    weights |= {"head": random(8, 6, seed=3), "bias": random(6, seed=4)}
    weights["w1"][0] *= np.float32(outlier)
    weights["w2"][:, 0] /= np.float32(outlier)
    return model(nodes, {"x": [4, 3, 8, 8]}, ["y"], weights)


SAMPLES = [random(4, 3, 8, 8, seed=i) for i in range(6)]


def int8(built: onnx.ModelProto, **options: Any) -> Any:
    return convert(
        built, "int8", calibration=calibration_from(SAMPLES, built), options=PrecisionOptions(**options)
    )


def counts(values: np.ndarray) -> Histogram:
    found, _ = np.histogram(np.abs(values), bins=4096, range=(0, np.abs(values).max()))
    return Histogram(found, float(np.abs(values).max()))


def test_least_squared_error_gives_up_a_lone_outlier() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=100_000), [40.0]])

    def error(end: float) -> float:
        rounded = np.clip(np.round(values / (end / 127)), -127, 127) * end / 127
        return float(((values - rounded) ** 2).mean())

    chosen = threshold(counts(values), "mse")
    assert 4 < chosen < 40
    assert error(chosen) < 0.9 * error(40.0)
    assert error(chosen) <= 1.02 * min(error(40 * part / 128) for part in range(17, 129))


def test_ranges_of_evenly_spread_values_end_where_they_do() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 100_000)
    assert threshold(counts(values), "mse") > 0.97
    assert threshold(counts(values), "percentile", 50) == pytest.approx(0.5, abs=0.01)
    assert threshold(counts(values), "percentile", 100) == pytest.approx(1, abs=0.001)
    assert threshold(counts(values), "entropy") > 0.9


def test_biases_make_up_for_rounding() -> None:
    """The mean of what a layer is off becomes smaller, and with it the error of the outputs."""
    built = classifier(outlier=30.0)
    options = {"equalise": False, "method": "minmax"}
    plain, corrected = (int8(built, **options, correct_biases=on) for on in (False, True))
    assert plain.record["corrected_biases"] == []
    assert corrected.record["corrected_biases"] == ["one", "two", "head"]
    fresh = [{"x": random(4, 3, 8, 8, seed=100 + i)} for i in range(8)]

    def error(made: onnx.ModelProto) -> float:
        gaps = [run(made, feeds)[0] - run(built, feeds)[0] for feeds in fresh]
        return float(np.linalg.norm(np.concatenate(gaps)))

    assert error(corrected.model) < 0.9 * error(plain.model)


def test_layers_that_share_a_bias_are_corrected_apart_under_fresh_names() -> None:
    built = classifier(outlier=30.0)
    nodes = {node.name: node for node in built.graph.node}
    nodes["two"].input.append("b1")
    # The name that a copy of the bias would get is a value's already.
    nodes["act2"].output[0] = nodes["pool"].input[0] = "b1_corrected"
    result = int8(built, equalise=False, method="minmax")
    assert {"one", "two"} <= set(result.record["corrected_biases"])
    onnx.checker.check_model(result.model, full_check=True)
    stored = [tensor.name for tensor in result.model.graph.initializer]
    assert len(set(stored)) == len(stored)
    biases = {node.name: node.input[2] for node in result.model.graph.node if node.op_type == "Conv"}
    assert biases["one"] != biases["two"]
    assert "b1_corrected" not in biases.values()
    run(result.model, {"x": SAMPLES[0]})


def test_of_a_residual_sum_the_other_branch_is_quantised() -> None:
    built = classifier(residual=True)
    assert "sum" not in int8(built).record["quantised"]
    result = int8(built, quantise=("Conv", "Gemm", "Add"), equalise=False)
    assert "sum" in result.record["quantised"]
    made = {name: node for node in result.model.graph.node for name in node.output}
    one, other = next(node for node in result.model.graph.node if node.name == "sum").input
    assert made[one].name == "two"  # no pair parts the layer from its sum
    assert made[other].op_type == "DequantizeLinear"
    # The pair in front of the layer is the one in front of the sum.
    assert operators(result.model).count("QuantizeLinear") == 3


def test_the_ends_stay_in_float32() -> None:
    record = int8(classifier(), keep_fp32=("first", "last")).record
    assert record["quantised"] == ["two"]
    assert [entry["node"] for entry in record["kept"]] == ["one", "head"]


def test_what_each_layer_loses_alone() -> None:
    built = classifier(outlier=300.0)
    losses = int8(built, method="minmax", sensitivity=True).record["sensitivity"]
    assert {loss["node"] for loss in losses} == {"one", "two", "head"}
    assert losses[0]["node"] == "two"  # which reads the loud channel beside the quiet ones
    assert losses[0]["error"] > 3 * losses[1]["error"] > 0


def too_loud() -> onnx.ModelProto:
    """Its outputs are centred, so that classes hang on what an input makes of them."""
    built = classifier(outlier=3000.0)
    bias = next(tensor for tensor in built.graph.initializer if tensor.name == "bias")
    mean = np.concatenate([run(built, {"x": sample})[0] for sample in SAMPLES]).mean(axis=0)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - mean, "bias"))
    return built


def test_changed_classes_are_refused_and_said() -> None:
    options = PrecisionOptions(method="minmax", correct_biases=False)
    wanted = Conversion("int8", options, calibration=SAMPLES, tolerance=10.0)
    told: list[tuple[str, float, float]] = []
    record = converted(too_loud(), wanted, progress=lambda *step: told.append(step)).record
    assert record["agreement"]["samples"] == 6
    assert [(done, all_) for phase, done, all_ in told if phase == "comparing"][-6:] == [
        (i, 6) for i in range(6)
    ]
    share = record["agreement"]["outputs"][0]["top1_agreement"]
    assert share < 0.9
    assert "gives another class for" in record["agreement"]["warning"]
    made = converted(too_loud(), wanted)
    outputs = agreement(made.before, made.model, calibration_from(SAMPLES, made.before))
    assert "keep their class" in str(objection(outputs, tolerance_of("int8", 10.0), 0.9))
    assert objection(outputs, tolerance_of("int8", 10.0), None) is None
    assert warning(()) is None
    with pytest.raises(CheckFailedError, match=r"too far from the original.*worst nodes.*Conv 'two'"):
        converted(too_loud(), Conversion("int8", options, calibration=SAMPLES))


def test_auto_keeps_the_worst_layers_and_no_more() -> None:
    options = PrecisionOptions(method="minmax", keep_fp32=("auto",), equalise=False)
    record = converted(too_loud(), Conversion("int8", options, calibration=SAMPLES)).record
    assert [entry["node"] for entry in record["kept"]] == ["two", "head"]
    assert record["quantised"] == ["one"]
    # One layer less in float32 does not do.
    fewer = PrecisionOptions(method="minmax", keep_fp32=("head",), equalise=False)
    with pytest.raises(CheckFailedError):
        converted(too_loud(), Conversion("int8", fewer, calibration=SAMPLES))
    assert record["agreement"]["warning"] is None
    assert record["sensitivity"][0]["node"] == "two"
    # Where its channels are made alike, the last layer need not stay.
    equalised = PrecisionOptions(method="minmax", keep_fp32=("auto",))
    record = converted(too_loud(), Conversion("int8", equalised, calibration=SAMPLES)).record
    assert [entry["node"] for entry in record["kept"]] == ["two"]


def test_auto_keeps_nothing_where_nothing_is_wrong() -> None:
    wanted = Conversion("int8", PrecisionOptions(keep_fp32=("auto",)), calibration=SAMPLES)
    assert converted(classifier(), wanted).record["kept"] == []


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(too_loud(), "in.onnx")
    np.save("data.npy", np.concatenate(SAMPLES))
    call = ["export", "in.onnx", "-o", "o.onnx", "--precision", "int8", "--calibration", "data.npy"]
    assert main([*call, "--calibration-method", "minmax"]) == 1
    assert "--keep-fp32 two it passes" in capsys.readouterr().err
    assert not Path("o.onnx").exists()
    more = (
        "--calibration-method",
        "minmax",
        "--keep-fp32",
        "auto",
        "--no-bias-correction",
        "--json",
        "r.json",
    )
    assert main([*call, *more]) == 0
    said = capsys.readouterr().out
    assert "two (Conv)" in said
    assert "over all 6 calibration batches:" in said
    record = json.loads(Path("r.json").read_text())["precision"]
    schema = json.loads((ROOT / "export" / "engine-sidecar.schema.json").read_text())
    jsonschema.validate(record, schema["properties"]["conversion"])
    assert (
        main([*call, "--force", "--quantize-add", "--no-equalize", "--tolerance", "9", "--sensitivity"]) == 0
    )
    said = capsys.readouterr().out
    assert "equalised" not in said
    assert "what each layer loses by being quantised alone" in said
    assert "█" in said
    written = onnx.load("o.onnx")
    assert {numpy_helper.to_array(t).dtype.name for t in written.graph.initializer} <= {"float32", "int8"}
    assert main(["export", "in.onnx", "-o", "p.onnx", "--precision", "fp16", "--no-equalize"]) == 2
