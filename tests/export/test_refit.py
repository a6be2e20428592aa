"""``convbn refit``: new weights in a folded ONNX model and, through the bindings of TensorRT, in an engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support import tensorrt_calls
from support.bindings import Bindings
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.cli import main
from convbn.errors import BadInputError, NotSupportedError
from convbn.export.engines.errors import UntrustedEngineError
from convbn.export.engines.refit import refit_engine
from convbn.export.onnx_io.refit import refitted

RTX = "tensorrt-rtx"


def network(seed: int = 0, *, kernel: int = 3, rows: int = 6) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[kernel // 2] * 4),
        batchnorm("c", "n"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Reshape", ["g", "rows"], ["f"], name="reshape"),
        helper.make_node("Gemm", ["f", "head", "bias"], ["y"], name="gemm"),
    ]
    weights = {"w": random(6, 3, kernel, kernel, seed=seed), "head": random(6, 5, seed=seed + 1)}
    weights |= {"bias": random(5, seed=seed + 2), "rows": np.array([-1, rows])}
    parameters = batchnorm_parameters(6)
    parameters = {name: array + np.float32(0.1 * seed) for name, array in parameters.items()}
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {**weights, **parameters})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old model folded, and the new one as it was trained."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "old.onnx")
    onnx.save(network(7), "new.onnx")
    assert main(["fuse", "old.onnx", "-o", "folded.onnx", "-q"]) == 0
    return tmp_path


def run(path: str) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": random(2, 3, 8, 8, seed=5)})[0]
    return result


def listing() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def refit(*arguments: str, target: str = "folded.onnx", new: str = "new.onnx") -> int:
    return main(["refit", target, "--from", new, "-o", "out.onnx", *arguments])


def test_the_graph_stays_and_the_weights_are_the_new_ones_folded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refit("--json", "r.json") == 0
    assert "4 weights exchanged, the graph is folded.onnx's" in capsys.readouterr().out
    np.testing.assert_allclose(run("out.onnx"), run("new.onnx"), rtol=1e-4, atol=1e-5)
    assert np.abs(run("out.onnx") - run("old.onnx")).max() > 0.1
    before, after = onnx.load("folded.onnx"), onnx.load("out.onnx")
    assert before.graph.node == after.graph.node
    assert [tensor.name for tensor in before.graph.initializer] == [t.name for t in after.graph.initializer]
    facts = {entry.key: entry.value for entry in after.metadata_props}
    assert facts["convbn.source"] == "new.onnx"
    assert facts["convbn.source_sha256"] == hashlib.sha256(Path("new.onnx").read_bytes()).hexdigest()
    assert json.loads(Path("r.json").read_text())["batchnorm"] == {"before": 1, "after": 0}


def test_names_play_no_part(folder: Path) -> None:
    other = onnx.load("new.onnx")
    for node in other.graph.node:
        node.name = f"other_{node.name}"
        node.input[:] = [name if name == "x" else f"q_{name}" for name in node.input]
        node.output[:] = [name if name == "y" else f"q_{name}" for name in node.output]
    for tensor in other.graph.initializer:
        tensor.name = f"q_{tensor.name}"
    onnx.save(other, "new.onnx")
    assert refit() == 0
    np.testing.assert_allclose(run("out.onnx"), run("new.onnx"), rtol=1e-4, atol=1e-5)
    assert onnx.load("out.onnx").graph.node == onnx.load("folded.onnx").graph.node


def spoilt(change: Callable[[dict[str, Any]], None]) -> onnx.ModelProto:
    other = network(7)
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in other.graph.initializer}
    change(arrays)
    for tensor in other.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return other


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (network(7, kernel=5), "node Conv 'conv': 'w' is float 6x3x3x3, in the new model float 6x3x5x5"),
        (network(7, rows=-1), "cannot be run"),
        (spoilt(lambda a: a.update(rows=np.array([2, -1]))), "'rows' is no weight, and has another value"),
        (spoilt(lambda a: a.update(bias=random(1))), "'bias' is float 5, in the new model float 1"),
        (spoilt(lambda a: a["head"].__setitem__(0, np.nan)), "NaN"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    folder: Path, new: onnx.ModelProto, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(new, "new.onnx")
    assert refit() in (1, 3)
    assert told in capsys.readouterr().err
    assert listing() == ["folded.onnx", "new.onnx", "old.onnx"]


def test_a_batchnorm_that_stays_is_another_graph(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refit("--skip", "batchnorm-into-conv") == 3
    assert "it has 5 nodes, the new model 6" in capsys.readouterr().err


def test_other_opsets_are_other_graphs() -> None:
    fresh = network(7)
    fresh.opset_import[0].version += 1
    with pytest.raises(BadInputError, match="its opset is another"):
        refitted(network(), fresh)


def test_fp16_is_cast_as_the_target_was_and_int8_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("data.npy", random(4, 3, 8, 8))
    half = ["--precision", "fp16", "--keep-fp32", "gemm"]
    assert main(["export", "old.onnx", "-o", "half.onnx", *half]) == 0
    assert refit(target="half.onnx") == 0
    np.testing.assert_allclose(run("out.onnx"), run("new.onnx"), rtol=0.02, atol=0.02)
    assert onnx.load("out.onnx").graph.node == onnx.load("half.onnx").graph.node
    quantised = ["--precision", "int8", "--calibration", "data.npy"]
    assert main(["export", "old.onnx", "-o", "int8.onnx", *quantised]) == 0
    capsys.readouterr()
    assert refit("--force", target="int8.onnx") == 4
    assert "its scales belong to the old weights' values; convbn export new.onnx" in capsys.readouterr().err


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"precision": "fp16"}',
        '{"precision": 16, "method": "cast"}',
        '{"precision": "fp16", "method": "cast", "kept": [1]}',
        '{"precision": "fp16", "method": "cast", "kept": null}',
    ],
)
def test_what_is_no_record_of_a_conversion_is_named(
    folder: Path, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = onnx.load("folded.onnx")
    target.metadata_props.add(key="convbn.precision", value=record)
    onnx.save(target, "folded.onnx")
    assert refit() == 3
    told = capsys.readouterr().err
    assert "folded.onnx: its metadata convbn.precision is no record of a conversion" in told
    assert listing() == ["folded.onnx", "new.onnx", "old.onnx"]


def test_files_are_not_replaced_unasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refit", "folded.onnx", "--from", "new.onnx", "-o", "new.onnx"]) == 5
    assert "new.onnx: already exists" in capsys.readouterr().err
    assert main(["refit", "folded.onnx", "--from", "new.onnx", "-o", "m.engine"]) == 2
    assert main(["refit", "folded.onnx", "--from", "new.onnx", "-o", "m.onnx", "--onnx", "q.onnx"]) == 2
    assert listing() == ["folded.onnx", "new.onnx", "old.onnx"]


@pytest.mark.slow
def test_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "refitted_net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import refitted_net

    modules = []
    for seed in range(2):
        torch.manual_seed(seed)
        modules.append(refitted_net.make().eval())
        modules[-1][1].running_mean.normal_()
        torch.save(modules[-1].state_dict(), f"{seed}.pth")
    how = ["--arch", "refitted_net:make", "--input-shape", "x:2x3x8x8"]
    assert main(["export", "0.pth", *how, "-o", "folded.onnx"]) == 0
    assert refit(*how, new="1.pth") == 0
    x = random(2, 3, 8, 8, seed=5)
    with torch.no_grad():
        wanted = modules[1](torch.from_numpy(x)).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession("out.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """An engine with a sidecar, in a TensorRT that answers as a script says."""
    trt = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

    def make(**script: Any) -> Path:
        answers = {**tensorrt_calls.engine_script(trt), **tensorrt_calls.refit_script(), **script}
        tensorrt_calls.stand_in(monkeypatch, Bindings(trt, answers), RTX)
        path = tensorrt_calls.engine_file(folder, b"vtrt")
        data = path.read_bytes()
        described = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        beside = {"schema_version": "1", "engine": described, "tf32": True, "conversion": None}
        Path("m.engine.json").write_text(json.dumps(beside))
        return path

    return make


def test_an_engine_takes_the_new_weights(engine: Callable[..., Path]) -> None:
    seen = []

    def took(parser: Any, data: bytes) -> bool:
        seen.append(data)
        return True

    path = engine(**{"OnnxParserRefitter.refit_from_bytes": took})
    command = ["refit", str(path), "--from", "new.onnx", "-o", "out.engine", "--onnx", "new_folded.onnx"]
    assert main(command) == 2  # nobody said that it is trusted
    assert main([*command, "--trust-engine"]) == 0
    assert Path("out.engine").read_bytes() == b"refitted"
    sidecar = json.loads(Path("out.engine.json").read_text())
    assert sidecar["engine"]["sha256"] == hashlib.sha256(b"refitted").hexdigest()
    assert sidecar["onnx"]["sha256"] == hashlib.sha256(seen[0]).hexdigest()
    assert sidecar["fold_summary"]["batchnorm"] == {"before": 1, "after": 0}
    assert sidecar["tf32"] is True
    onnx.load_model_from_string(seen[0])
    np.testing.assert_allclose(run("new_folded.onnx"), run("new.onnx"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ({"ICudaEngine.refittable": False}, "was not built to take new weights; build it with --refit"),
        ({"Refitter.get_missing_weights": lambda refitter: ["a", "b"]}, "needs weights .*: a, b"),
        ({"Refitter.refit_cuda_engine": False}, "was not refitted: TensorRT gives no reason"),
        ({"OnnxParserRefitter.refit_from_bytes": False, "OnnxParserRefitter.num_errors": 0}, "does not take"),
    ],
)
def test_an_engine_that_does_not(engine: Callable[..., Path], script: dict[str, Any], told: str) -> None:
    path = engine(**script)
    with pytest.raises(NotSupportedError, match=told):
        refit_engine(path, network(), "out.engine", trust=True, changes={})
    with pytest.raises(UntrustedEngineError):
        refit_engine(path, network(), "out.engine", trust=False, changes={})
    assert "out.engine" not in listing()
