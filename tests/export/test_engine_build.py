from __future__ import annotations

import _thread
import hashlib
import json
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convbn.errors import FileAccessError, NotSupportedError, UsageError
from convbn.export.engines.build import builder
from convbn.export.engines.build.build import build_engine
from convbn.export.engines.build.builder import make_monitor
from convbn.export.engines.build.network import network_summary
from convbn.export.engines.errors import (
    BuildCancelledError,
    BuildError,
    EngineMismatchError,
    OnnxParseError,
    PrecisionError,
    ShapeProfileError,
    UnsupportedOpError,
)
from convbn.export.engines.sidecar import read_sidecar
from convbn.export.files.sniff import ArtifactKind, sniff
from convbn.export.shapes import ShapeRange, parse_profiles

pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

RTX = "tensorrt-rtx"


def schema() -> dict:
    import convbn.export

    return json.loads((Path(convbn.export.__file__).parent / "engine-sidecar.schema.json").read_text())


def line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "catchCudaError" not in text
    return text


def test_scale_layers_of_unfused_and_folded(tiny):
    before = network_summary(tiny.conv_bn(folded=False), RTX)
    after = network_summary(tiny.conv_bn(folded=True), RTX)
    assert (before["SCALE"], after["SCALE"]) == (1, 0)
    assert before["CONVOLUTION"] == after["CONVOLUTION"] == 1


def test_engine_and_sidecar(tiny, tmp_path, names, saved):
    jsonschema = pytest.importorskip("jsonschema")
    out = tmp_path / "a.engine"
    folded = tiny.conv_bn(folded=True)
    artifact = build_engine(
        folded, out, backend=RTX, unfused_model=saved, fold_summary={"fused": 1, "skipped": 0}
    )
    assert names(tmp_path) == ["a.engine", "a.engine.json", "tiny.onnx"]
    assert sniff(out) is ArtifactKind.ENGINE
    assert artifact.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert artifact.size == out.stat().st_size
    sidecar = json.loads(artifact.sidecar_path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(sidecar)
    assert sidecar["scale_layers"] == {"before": 1, "after": 0}
    assert sidecar["fold_summary"] == {"fused": 1, "skipped": 0}
    assert sidecar["onnx"]["sha256"] == hashlib.sha256(folded.SerializeToString()).hexdigest()
    assert sidecar["inputs"] == [{"name": "x", "dtype": "FLOAT", "shape": [1, 3, 8, 8]}]
    assert sidecar["backend"]["name"] == RTX
    assert "STRONGLY_TYPED" in sidecar["flags"]
    assert "TF32" in sidecar["flags"]
    assert sidecar["command"].startswith("tensorrt_rtx --onnx=MODEL.onnx")
    assert read_sidecar(out) == sidecar


def test_the_schema_has_teeth(tiny, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    sidecar = dict(build_engine(tiny.conv_bn(folded=True), tmp_path / "a", backend=RTX).sidecar)
    validator = jsonschema.Draft202012Validator(schema())
    for change in ({"schema_version": 1}, {"device": "a GPU"}, {"onnx": {}}, {"extra": 1}, {"outputs": []}):
        assert not validator.is_valid({**json.loads(json.dumps(sidecar)), **change})


def test_two_builds_are_byte_identical_and_tf32_is_obeyed(saved, tmp_path):
    plans = {}
    for name, tf32 in (("a", True), ("b", True), ("c", False)):
        artifact = build_engine(saved, tmp_path / name, backend=RTX, tf32=tf32)
        plans[name] = artifact.path.read_bytes()
        assert ("TF32" in artifact.sidecar["flags"]) is tf32
        assert ("--noTF32" in artifact.sidecar["command"]) is not tf32
    assert plans["a"] == plans["b"] != plans["c"]


def test_path_and_model_give_the_same_engine(tiny, saved, tmp_path):
    a = build_engine(saved, tmp_path / "a", backend=RTX)
    b = build_engine(onnx.load(saved), tmp_path / "b", backend=RTX)
    assert a.sha256 == b.sha256
    assert a.sidecar["onnx"]["file"] == str(saved)


def test_external_data_is_read_from_beside_the_model(tiny, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    plain = build_engine(tiny.conv_bn(folded=True), tmp_path / "a", backend=RTX)
    onnx.save(
        tiny.conv_bn(folded=True), folder / "m.onnx", save_as_external_data=True, location="m.bin",
        size_threshold=0,
    )  # fmt: skip
    external = build_engine(folder / "m.onnx", tmp_path / "b", backend=RTX)
    assert external.sha256 == plain.sha256


def test_a_model_too_large_for_one_message_goes_through_a_file(tiny, tmp_path, monkeypatch, names):
    plain = build_engine(tiny.conv_bn(folded=True), tmp_path / "a", backend=RTX)
    monkeypatch.setattr("convbn.export.engines.build.source.PROTOBUF_LIMIT", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    large = build_engine(tiny.conv_bn(folded=True), tmp_path / "b", backend=RTX)
    assert large.sha256 == plain.sha256
    assert large.sidecar["onnx"] == plain.sidecar["onnx"]
    assert names(tmp_path / "tmp") == []
    onnx.save(tiny.conv_bn(folded=True), tmp_path / "m.onnx")
    assert build_engine(tmp_path / "m.onnx", tmp_path / "c", backend=RTX).sha256 == plain.sha256


def test_dynamic_input(tiny, tmp_path):
    model = tiny.conv_bn(folded=True, batch="n")
    shapes = parse_profiles(["x=1x3x8x8:4x3x8x8:8x3x8x8"])
    sidecar = build_engine(model, tmp_path / "a", backend=RTX, shapes=shapes).sidecar
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["profiles"] == [{"x": {"min": [1, 3, 8, 8], "opt": [4, 3, 8, 8], "max": [8, 3, 8, 8]}}]
    assert written["inputs"][0]["shape"] == [-1, 3, 8, 8]
    assert "--minShapes=x:1x3x8x8 --optShapes=x:4x3x8x8 --maxShapes=x:8x3x8x8" in sidecar["command"]


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ([], "dynamic inputs without shapes: x (?x3x8x8)"),
        (["q:1x3x8x8"], "no input 'q'; its inputs are x (?x3x8x8)"),
        (["x:1x3x8"], "1x3x8 does not fit input 'x', which is ?x3x8x8"),
        (["x=1x3x8x8:2x3x8x8:4x5x8x8"], "4x5x8x8 does not fit"),
    ],
)
def test_shapes_that_do_not_fit(tiny, tmp_path, names, shapes, told):
    model = tiny.conv_bn(folded=True, batch="n")
    with pytest.raises(ShapeProfileError) as error:
        build_engine(model, tmp_path / "a", backend=RTX, shapes=parse_profiles(shapes))
    assert told in line(error)
    assert names(tmp_path) == []


def test_an_unnamed_shape_needs_one_input(tiny, tmp_path):
    model = tiny.single("Add", (1, 1), shape=("n", 3))
    with pytest.raises(ShapeProfileError, match="one input, not x"):
        build_engine(model, tmp_path / "a", backend=RTX, shapes={None: ShapeRange((1, 3), (1, 3), (1, 3))})
    model = tiny.single("Relu", shape=("n", 3))
    build_engine(model, tmp_path / "a", backend=RTX, shapes={None: ShapeRange((1, 3), (1, 3), (1, 3))})


def test_inputs_that_decide_shapes_are_refused(tiny, tmp_path):
    value = helper.make_tensor_value_info
    model = tiny.model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [value("x", 1, [1, 3, 8, 8]), value("s", 7, [2])],
        [value("y", 1, None)],
        [],
    )
    with pytest.raises(NotSupportedError, match="'s' decide shapes"):
        build_engine(model, tmp_path / "a", backend=RTX)


def test_parser_errors_name_the_node(tiny, tmp_path, names):
    with pytest.raises(UnsupportedOpError) as unknown:
        build_engine(tiny.single("FooBar", domain="my"), tmp_path / "a", backend=RTX)
    assert line(unknown) == "the model: node 0 'the_node' (FooBar) is no operator that TensorRT knows"
    with pytest.raises(UnsupportedOpError) as unsupported:
        build_engine(tiny.single("Det"), tmp_path / "a", backend=RTX)
    assert "(Det) is no operator" in line(unsupported)
    with pytest.raises(UnsupportedOpError) as string:
        build_engine(tiny.single("Identity", (8,)), tmp_path / "a", backend=RTX)
    assert "Failed to convert" in line(string)
    with pytest.raises(OnnxParseError) as mixed:
        build_engine(tiny.single("Add", (1, 10)), tmp_path / "a", backend=RTX)
    assert "node 0 'the_node' (Add): the_node: ElementWiseOperation SUM must have same input types" in line(
        mixed
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("dim", "told"), [(1 << 30, "volume exceeds 1099511627776"), (1 << 20, "which exceeds")]
)
def test_build_error_is_the_first_real_line(tiny, tmp_path, names, dim, told):
    # TensorRT parses an Expand beyond its element count and refuses it while building.
    value = helper.make_tensor_value_info
    big = numpy_helper.from_array(np.array([dim, dim, 1 << 20], np.int64), "s")
    nodes = [helper.make_node("Expand", ["x", "s"], ["y"])]
    model = tiny.model(nodes, [value("x", 1, [1, 1, 1])], [value("y", 1, None)], [big])
    with pytest.raises(BuildError) as error:
        build_engine(model, tmp_path / "a", backend=RTX)
    assert line(error).startswith("the model: TensorRT cannot build this model: ")
    assert told in line(error)
    assert "/_src/" not in line(error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_precision_that_the_model_does_not_carry(tiny, tmp_path, precision):
    with pytest.raises(PrecisionError, match=f"does not carry {precision}; convert it first") as error:
        build_engine(tiny.conv_bn(folded=True), tmp_path / "a", backend=RTX, precision=precision)
    assert error.value.exit_code == 4


def test_unknown_options(tiny, tmp_path):
    with pytest.raises(UsageError, match="no precision 'fp42'"):
        build_engine(tiny.conv_bn(folded=True), tmp_path / "a", precision="fp42")
    with pytest.raises(UsageError, match="no backend 'trt'"):
        build_engine(tiny.conv_bn(folded=True), tmp_path / "a", backend="trt")


def test_fp32_is_refused_for_what_carries_less(tiny, tmp_path):
    with pytest.raises(PrecisionError, match="carries fp16"):
        build_engine(tiny.single("Relu", (10,)), tmp_path / "a", backend=RTX, precision="fp32")
    build_engine(tiny.single("Relu", (10,)), tmp_path / "a", backend=RTX)
    build_engine(tiny.single("Relu", (1,)), tmp_path / "b", backend=RTX, precision="fp32")


def test_float64_is_a_warning(tiny, tmp_path):
    sidecar = build_engine(tiny.single("Relu", (11,)), tmp_path / "a", backend=RTX).sidecar
    assert any("float64" in warning for warning in sidecar["warnings"])
    sidecar = build_engine(tiny.single("Relu", (1,)), tmp_path / "b", backend=RTX).sidecar
    assert sidecar["warnings"] == []


def test_progress_is_reported_and_can_cancel(saved, tmp_path, names):
    phases = []
    build_engine(saved, tmp_path / "a", backend=RTX, progress=lambda *event: phases.append(event))
    assert phases[0][0] == "Building engine"
    assert all(0 <= done <= steps for _, done, steps in phases)
    calls = []

    def stop(*event):
        calls.append(event)
        return len(calls) < 5

    before = names(tmp_path)
    with pytest.raises(BuildCancelledError) as error:
        build_engine(saved, tmp_path / "b", backend=RTX, progress=stop)
    assert "was cancelled, nothing was written" in line(error)
    assert error.value.exit_code == 130
    assert names(tmp_path) == before
    assert len(calls) == 5


def test_tensorrt_is_told_to_stop():
    import tensorrt_rtx

    cancel = threading.Event()
    monitor = make_monitor(tensorrt_rtx, lambda *event: False, cancel)
    assert monitor.step_complete("phase", 0) is False
    assert cancel.is_set()
    assert make_monitor(tensorrt_rtx, None, threading.Event()).step_complete("phase", 0) is True


def test_an_exception_in_progress_comes_out(saved, tmp_path, names):
    def fail(*event):
        raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError, match="in the callback"):
        build_engine(saved, tmp_path / "a", backend=RTX, progress=fail)
    assert names(tmp_path) == ["tiny.onnx"]
    build_engine(saved, tmp_path / "a", backend=RTX)  # nothing hangs over


def test_ctrl_c_cancels(saved, tmp_path, names, monkeypatch):
    threads = threading.enumerate()
    calls, events = [], []

    def event():
        events.append(threading.Event())
        return events[-1]

    monkeypatch.setattr(builder, "threading", SimpleNamespace(Event=event, Thread=threading.Thread))

    def interrupt(*event):
        calls.append(event)
        if len(calls) == 3:
            _thread.interrupt_main()
            cancel, _ = events
            assert cancel.wait(60)

    with pytest.raises(KeyboardInterrupt):
        build_engine(saved, tmp_path / "a", backend=RTX, progress=interrupt)
    assert len(calls) < 10
    assert names(tmp_path) == ["tiny.onnx"]
    assert threading.enumerate() == threads


def test_existing_files_are_kept(saved, tmp_path):
    engine, sidecar = tmp_path / "a", tmp_path / "a.json"
    sidecar.write_text("mine")
    with pytest.raises(FileAccessError, match=r"a\.json: already exists; use --force"):
        build_engine(saved, engine, backend=RTX)
    assert not engine.exists()
    build_engine(saved, engine, backend=RTX, overwrite=True)
    assert (
        json.loads(sidecar.read_text())["engine"]["sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
    )


def test_a_failed_build_keeps_the_old_engine(tiny, saved, tmp_path):
    build_engine(saved, tmp_path / "a", backend=RTX)
    before = (tmp_path / "a").read_bytes(), (tmp_path / "a.json").read_bytes()
    with pytest.raises(UnsupportedOpError):
        build_engine(tiny.single("FooBar", domain="my"), tmp_path / "a", backend=RTX, overwrite=True)
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "a.json").read_bytes()) == before


def test_sidecar_of_another_engine_is_found_out(saved, tmp_path):
    build_engine(saved, tmp_path / "a", backend=RTX)
    read_sidecar(tmp_path / "a")
    with (tmp_path / "a").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(EngineMismatchError, match=r"a: is not the engine that a\.json describes"):
        read_sidecar(tmp_path / "a")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(Exception, match="is not the sidecar"):
        read_sidecar(tmp_path / "a")
    (tmp_path / "a.json").unlink()
    with pytest.raises(FileAccessError, match="has no sidecar"):
        read_sidecar(tmp_path / "a")
