"""OpenVINO, the real one: measured, proved, asked for by every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convbn.bench.models.errors import ModelFormMissingError, SessionError
from convbn.bench.runtimes.base import SessionOptions, Variant
from convbn.bench.runtimes.registry import open_session
from convbn.cli import main

pytest.importorskip("openvino")

ConvModel = Callable[..., onnx.ModelProto]
FEEDS = {"x": np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("level", ["", "@auto"])
def test_it_computes_what_onnxruntime_does(conv_model: ConvModel, level: str) -> None:
    with open_session("onnxruntime-cpu@off", Variant("a", onnx=conv_model())) as session:
        expected = session.run(FEEDS)[0]
    with open_session(
        f"openvino-cpu{level}", Variant("a", onnx=conv_model()), SessionOptions(threads=1)
    ) as session:
        assert session.output_names == ("y",)
        # Left to itself OpenVINO takes bfloat16 where the CPU has it, and has to say so.
        within = 1e-5 if session.compute_dtype is None else 0.1
        assert level or session.compute_dtype is None
        assert np.allclose(session.run(FEEDS)[0], expected, atol=within)
        first = session.run(FEEDS)[0]
        session.run({"x": FEEDS["x"] * 2})
        assert np.allclose(first, expected, atol=within)  # an output is its own, not the request's buffer


@pytest.mark.parametrize(
    "kind", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64]
)
def test_every_type_arrives_and_comes_back(kind: int) -> None:
    ends = [helper.make_tensor_value_info(name, kind, [1, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    dtype = (
        np.dtype(ml_dtypes.bfloat16)
        if kind == TensorProto.BFLOAT16
        else helper.tensor_dtype_to_np_dtype(kind)
    )
    array = np.array([[1, -2, 96]]).astype(dtype)
    with open_session("openvino-cpu", Variant("a", onnx=model)) as session:
        (found,) = session.run({"x": array})
    assert found.dtype == dtype
    assert (found == -array).all()


def test_what_it_cannot_do_is_one_typed_line(conv_model: ConvModel, tmp_path: Path) -> None:
    with pytest.raises(ModelFormMissingError, match="OpenVINO needs an ONNX model"):
        open_session("openvino-cpu", Variant("mine"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(SessionError, match=r"^mine: OpenVINO cannot load"):
        open_session("openvino-cpu", Variant("mine", onnx=broken))
    with open_session("openvino-cpu", Variant("mine", onnx=conv_model())) as session:
        for call in (session.run, session.prepare):
            with pytest.raises(SessionError, match=r"^mine: OpenVINO cannot run") as caught:
                call({"x": np.zeros((2, 5, 8, 8), np.float32)})
            assert "\n" not in str(caught.value)


def test_bench_measures_with_equality_and_a_control(conv_model: ConvModel, tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "r.json"
    onnx.save(conv_model(), path)
    command = [
        "bench",
        path,
        "--runtime",
        "openvino-cpu",
        "--budget",
        "0.3",
        "--threads",
        "1",
        "--json",
        out,
        "--quiet",
    ]
    assert main([str(part) for part in command]) == 0
    value = json.loads(out.read_text())
    baseline, folded = value["cases"][0]["rows"]
    assert (baseline["verdict"], folded["status"]) == ("baseline", "measured")
    assert folded["equality"]["status"] == "equal"
    assert folded["ratio"] is not None
    assert value["cases"][0]["runtimes"][0]["noise_floor"] is not None
    assert value["environment"]["libraries"]["openvino"]
    assert baseline["peak_memory_bytes"] > 0


def test_verify_runs_both_in_it(conv_model: ConvModel, tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "r.json"
    onnx.save(conv_model(), path)
    command = ["verify", path, path, "--runtime", "openvino-cpu", "--json", out, "--quiet"]
    assert main([str(part) for part in command]) == 0
    assert json.loads(out.read_text())["runtime"] == "openvino-cpu"
    command[4] = "openvino-gpu"
    assert main([str(part) for part in command]) == 2


def test_doctor_tries_it(tmp_path: Path) -> None:
    main(["doctor", "--json", str(tmp_path / "r.json"), "--quiet"])
    (part,) = [
        part
        for part in json.loads((tmp_path / "r.json").read_text())["parts"]
        if part["name"] == "openvino-cpu"
    ]
    assert part["works"]
