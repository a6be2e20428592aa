"""SECURITY.md's promise about engines, verb by verb: nothing of one is handed to TensorRT before it is trusted."""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support import tensorrt_calls

from convbn.bench.runtimes import engine_session
from convbn.cli import main, parser
from convbn.export.engines.run.cuda import CudaDevice

real = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

E, M = "a.engine", "m.onnx"
#: Every verb that opens models, with an engine wherever it takes a file.
COMMANDS = {
    "inspect": [["inspect", E]],
    "fuse": [["fuse", E, "-o", "out.onnx"]],
    "verify": [["verify", E, M], ["verify", M, E], ["verify", E, E]],
    "export": [
        ["export", E, "-o", "out.onnx"],
        ["export", E, "-o", "out.engine", "--backend", "tensorrt-rtx"],
    ],
    "bench": [
        ["bench", E],
        ["bench", E, M],
        ["bench", M, E, "--runtime", "tensorrt-rtx"],
        ["bench", M, E, "--each"],
    ],
    "refit": [["refit", E, "--from", M, "-o", "out.engine"]],
}
#: These read results of benchmarks, or nothing; `run` does its steps by the verbs above.
OTHERS = {"report", "compare", "history", "doctor", "run"}


@pytest.fixture
def handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_stub: ctypes.CDLL) -> list[int]:
    """How often TensorRT was given an engine; there are an engine for y = 2x and a model of the same."""
    given: list[int] = []
    engine = tensorrt_calls.engine_file(tmp_path, b"vtrt").rename(tmp_path / E)
    script = {**tensorrt_calls.engine_script(real), "IHostMemory": engine.read_bytes()}

    def deserialise(runtime: Any, data: bytes) -> Any:
        given.append(len(data))
        return runtime._bindings.make("ICudaEngine")

    script["Runtime.deserialize_cuda_engine"] = deserialise
    tensorrt_calls.stand_in(monkeypatch, tensorrt_calls.Bindings(real, script), "tensorrt-rtx", CudaDevice)
    values = [helper.make_tensor_value_info(name, 1, [2, 2]) for name in "xy"]
    two = numpy_helper.from_array(np.float32(2), "two")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])], "g", values[:1], values[1:], [two]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / M
    )
    monkeypatch.chdir(tmp_path)
    return given


def test_every_verb_is_looked_at() -> None:
    verbs = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert set(verbs) == COMMANDS.keys() | OTHERS


@pytest.mark.parametrize("arguments", [a for several in COMMANDS.values() for a in several], ids=" ".join)
def test_nothing_is_handed_over_without_trust(
    handed_over: list[int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments)
    assert handed_over == []
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    if arguments[0] == "inspect":
        assert code == 0
        assert "it was not said that it is trusted" in told.out
    else:
        assert code in (2, 4)
        assert "engine" in told.err
    if arguments[0] == "bench":
        assert told.err == (
            "convbn: a.engine: an engine is a program; "
            "say trust=True, or --trust-engine, if you trust where it comes from\n"
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", E],
        ["verify", M, E],
        ["bench", M, E, "--runtime", "tensorrt-rtx", "--blocks", "2", "--budget", "1", "--no-memory"],
    ],
    ids=" ".join,
)
def test_with_trust_it_is(handed_over: list[int], arguments: list[str]) -> None:
    main([*arguments, "--trust-engine"])
    assert handed_over


def test_an_engine_is_held_against_its_model(
    handed_over: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["verify", M, E, "--trust-engine", "--json", "r.json"]) == 0
    assert json.loads(Path("r.json").read_text())["runtime"] == "onnxruntime-cpu@off against tensorrt-rtx"
    model = onnx.load(M)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(3), "two"))
    onnx.save(model, "other.onnx")
    assert main(["verify", "other.onnx", E, "--trust-engine"]) == 1
    assert main(["verify", E, E, "--trust-engine"]) == 2
    assert "engine" in capsys.readouterr().err


def test_the_binary_wheel_alone_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only binary wheels are allowed, ``tensorrt_rtx`` is missing, and what it imports is there."""
    from convbn.export.engines.backends.registry import backend_named

    bindings = pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(engine_session, "require_gpu", lambda **where: None)
    engine_session.load_library("tensorrt-rtx")
    assert backend_named("tensorrt-rtx").load() is bindings
