"""A precision added from outside, as docs/architecture.md shows it: one row, and nothing else touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convbn import build_engine
from convbn.bench.equivalence.tolerance import tolerance_of
from convbn.cli import main, parser
from convbn.export.precision.precisions import PRECISIONS, Precision


# [precision]
def coarse_weights(
    model: onnx.ModelProto, calibration: Any, options: Any
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Weights rounded to sixteen steps each way, held in float32: what a 4-bit file would give back."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            step = np.abs(values).max() / 16
            tensor.CopyFrom(numpy_helper.from_array(np.round(values / step) * step, tensor.name))
    return result, {"method": "rounded"}


W4 = Precision(
    "w4", coarse_weights, carried=lambda held: False, dtype="float32", bound=0.2, bound_source="16 steps"
)
# [/precision]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PRECISIONS, W4.name, W4)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6]),
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("registered")
def test_the_command_line_offers_converts_and_proves_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model.onnx", "-o", "w4.onnx", "--precision", "w4"]) == 0
    assert "w4 against the original: " in capsys.readouterr().out
    written = numpy_helper.to_array(onnx.load("w4.onnx").graph.initializer[0])
    assert len(np.unique(written)) <= 33
    assert main(["verify", "model.onnx", "w4.onnx", "--precision", "w4"]) == 0
    assert main(["verify", "model.onnx", "w4.onnx"]) == 1  # not what float32 would give
    assert parser().parse_args(["verify", "a", "b", "--precision", "w4"]).precision == "w4"


@pytest.mark.usefixtures("registered")
def test_options_that_mean_nothing_for_it_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model.onnx", "-o", "a.onnx", "--precision", "w4", "--keep-fp32", "conv"]) == 2
    assert "--keep-fp32 is for --precision fp16 or bf16 or int8, not w4" in capsys.readouterr().err


@pytest.mark.usefixtures("registered")
def test_a_benchmark_measures_it() -> None:
    command = ["bench", "model.onnx", "--precision", "fp32,w4", "--runtime", "onnxruntime-cpu@off"]
    assert main([*command, "--blocks", "2", "--budget", "0.5", "--no-memory", "--json", "r.json"]) == 0
    cases = json.loads(Path("r.json").read_text())["cases"]
    assert [case["precision"] for case in cases] == ["fp32", "w4"]
    assert all(row["status"] == "measured" for row in cases[1]["rows"][:2])


@pytest.mark.usefixtures("registered")
def test_an_engine_is_built_in_it() -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    artifact = build_engine("model.onnx", "a.engine", backend="tensorrt-rtx", precision="w4")
    assert artifact.sidecar["precision"] == "w4"
    assert artifact.sidecar["conversion"]["method"] == "rounded"  # type: ignore[index]  # an object, see the schema


def test_its_tolerance_is_that_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRECISIONS, W4.name, W4)
    assert (tolerance_of("w4").bound, tolerance_of("w4").source) == (0.2, "16 steps")


def test_published_schemas_name_every_precision() -> None:
    import convbn.export

    schema = json.loads((Path(convbn.export.__file__).parent / "engine-sidecar.schema.json").read_text())
    assert schema["properties"]["precision"]["enum"] == ["as-is", *PRECISIONS]
