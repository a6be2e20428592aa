"""``--strict``: what is only a warning otherwise fails, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.cli import main
from convbn.errors import Concern
from convbn.fuse.fold import fold


def network(dtype: type = np.float32) -> onnx.ModelProto:
    """One BatchNorm that goes and one that stays for its place."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n", prefix="first"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        batchnorm("r", "y", prefix="second"),
    ]
    stored = {"w": random(6, 3, 3, 3), **batchnorm_parameters(6, prefix="first")}
    stored |= batchnorm_parameters(6, prefix="second")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    arrays = {name: array.astype(dtype) for name, array in stored.items()}
    return model(nodes, {"x": [2, 3, 6, 6]}, ["y"], arrays, elem_type=kind)


def set_to(m: onnx.ModelProto, name: str, value: float) -> None:
    for tensor in m.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            array[:] = value
            tensor.CopyFrom(numpy_helper.from_array(array, name))


def nan() -> onnx.ModelProto:
    m = network()
    set_to(m, "first.mean", np.nan)
    return m


def overflow() -> onnx.ModelProto:
    m = network(np.float16)
    set_to(m, "first.gamma", 6e4)
    set_to(m, "first.var", 6e-8)
    return m


def training() -> onnx.ModelProto:
    m = network()
    m.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    return m


def too_few_channels() -> onnx.ModelProto:
    m = network()
    m.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "three"))
    m.graph.node[1].input[3] = "three"
    return m


def not_valid() -> onnx.ModelProto:
    m = network()
    del m.graph.output[0].type.tensor_type.shape.dim[:]
    m.graph.output[0].type.tensor_type.ClearField("shape")
    return m


WARNINGS: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (nan, "bad-statistics"),
    (overflow, "out-of-range"),
    (training, "training-mode"),
    (too_few_channels, "parameters-malformed"),
    (not_valid, "onnx's checker says"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


ENGINE = ("export", "-o", "out.engine", "--backend", "tensorrt-rtx")


@pytest.mark.parametrize(
    "command", [("inspect",), ("fuse", "-o", "out.onnx"), ("export", "-o", "out.onnx"), ENGINE], ids=" ".join
)
@pytest.mark.parametrize(("made", "told"), WARNINGS, ids=[told for _, told in WARNINGS])
def test_each_warning_fails_and_writes_nothing(
    folder: Path,
    made: Callable[[], onnx.ModelProto],
    told: str,
    command: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    if command is ENGINE:
        pytest.importorskip("tensorrt_rtx")
    Path("model.onnx").write_bytes(made().SerializeToString())
    assert main([command[0], "model.onnx", *command[1:], "--strict"]) == 1
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    assert said.startswith("convbn: model.onnx: ")
    assert told in said
    assert "--strict" in said
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert main(["inspect", "model.onnx"]) == 0


@pytest.mark.parametrize("command", [("inspect",), ("fuse", "-o", "out.onnx"), ("export", "-o", "out.onnx")])
def test_what_stays_for_its_place_is_no_warning(folder: Path, command: tuple[str, ...]) -> None:
    onnx.save(network(), "model.onnx")
    assert fold(network()).report.batchnorm.after == 1
    assert main([command[0], "model.onnx", *command[1:], "--strict"]) == 0


@pytest.mark.parametrize("extra", [("--no-verify",), ("--no-fuse",)])
@pytest.mark.parametrize("verb", ["fuse", "export"])
def test_what_makes_no_sense_with_it(
    folder: Path, verb: str, extra: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    onnx.save(network(), "model.onnx")
    if (verb, extra) == ("fuse", ("--no-fuse",)):
        pytest.skip("fuse has no such option")
    assert main([verb, "model.onnx", "-o", "out.onnx", "--strict", *extra]) == 2
    assert "--strict" in capfd.readouterr().err
    assert not Path("out.onnx").exists()


def test_other_notes_are_no_warnings() -> None:
    report = fold(not_valid()).report
    assert [type(note) for note in report.notes] == [Concern]
    assert report.warnings == report.notes
    assert report.to_dict()["input"]["notes"] == list(report.notes)
