"""Packages of other runtimes: made, loaded back, compared, described; refused where they cannot be made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.cli import main
from convbn.errors import CheckFailedError, NotSupportedError, UsageError
from convbn.export.files.sniff import ArtifactKind, sniff
from convbn.export.formats import FORMATS, format_of, packaged
from convbn.export.loading.source_model import SourceModel
from convbn.export.packages import aot_inductor, ep_context, onnxruntime_model
from convbn.exporting import write_package

SCHEMA = Path(__file__).parents[2] / "export" / "package-sidecar.schema.json"


def network() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        batchnorm("c", "n"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["y"], name="pool"),
    ]
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {"w": random(6, 3, 3, 3), **batchnorm_parameters(6)})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(network(), tmp_path / "in.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A state dict, and the options that make a module of it."""
    torch = pytest.importorskip("torch")
    (tmp_path / "packaged_net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import packaged_net

    torch.manual_seed(0)
    module = packaged_net.make()
    module[1].running_mean.normal_()
    torch.save(module.state_dict(), "net.pth")
    return ["net.pth", "--arch", "packaged_net:make", "--input-shape", "x:2x3x8x8"]


def described(path: str) -> dict[str, Any]:
    """The sidecar, held against its schema and against the file."""
    sidecar: dict[str, Any] = json.loads(Path(f"{path}.json").read_text())
    jsonschema.validate(sidecar, json.loads(SCHEMA.read_text()))
    data = Path(path).read_bytes()
    assert sidecar["package"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert sidecar["format"] == format_of(path).name
    return sidecar


def test_of_two_suffixes_that_fit_the_longer_one_counts() -> None:
    assert format_of("a/B.AOTI.PT2").name == "AOTInductor package"
    assert format_of("aoti.pt2").name == "PyTorch program"
    assert format_of("m.opt.onnx").name == "optimised ONNX model"
    fused = [row for row in FORMATS if "fuse" in row.verbs]
    with pytest.raises(UsageError, match=r"cannot write a '\.aoti\.pt2' file") as caught:
        format_of("m.aoti.pt2", fused)
    assert caught.value.hint == "OUT may be .onnx, .pt2, .safetensors"


def test_each_package_is_in_the_schema() -> None:
    known = json.loads(SCHEMA.read_text())["properties"]["format"]["enum"]
    assert sorted(known) == sorted(row.name for row in packaged())


@pytest.mark.parametrize("name", ["o.ort", "o.opt.onnx"])
def test_onnxruntime_optimises_what_was_folded(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    assert main(["export", "in.onnx", "-o", name]) == 0
    assert "loaded back: largest relative error" in capsys.readouterr().out
    sidecar = described(name)
    assert sidecar["fold_summary"]["batchnorm"] == {"before": 1, "after": 0}
    assert sidecar["verify"]["status"] == "equal"
    assert sidecar["facts"] == {"optimisation": "extended"}
    feeds = {"x": random(2, 3, 8, 8, seed=5)}
    outputs = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for path in ("in.onnx", name)
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_an_optimised_file_in_int8_is_compared_on_the_calibration_data(folder: Path) -> None:
    np.save("data.npy", random(6, 3, 8, 8))
    assert main(["export", "in.onnx", "-o", "o.ort", "--precision", "int8", "--calibration", "data.npy"]) == 0
    sidecar = described("o.ort")
    assert sidecar["conversion"]["quantised"] == ["conv"]
    assert sidecar["verify"]["samples"] == 3
    assert sidecar["verify"]["tolerance"]["norm"] == "rms"


def test_what_differs_once_it_is_loaded_back_is_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = onnxruntime_model.pack

    def wrong(given: Any, examples: Any, path: Path) -> Any:
        other = onnx.ModelProto()
        other.CopyFrom(given)
        other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(random(6, 3, 3, 3, seed=9), "w"))
        return made(other, examples, path)

    monkeypatch.setattr(onnxruntime_model, "PACKAGE", replace(onnxruntime_model.PACKAGE, pack=wrong))
    source = SourceModel(network())
    with pytest.raises(CheckFailedError, match="the onnxruntime model that was made differs"):
        write_package(network(), "o.ort", source)
    assert sorted(path.name for path in folder.iterdir()) == ["in.onnx"]
    write_package(network(), "o.ort", source, verify=False)
    assert described("o.ort")["verify"]["status"] == "not run"


def test_what_does_not_load_back_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = onnxruntime_model.pack

    def damaged(given: Any, examples: Any, path: Path) -> Any:
        packed = made(given, examples, path)
        path.write_bytes(path.read_bytes()[:100])
        return packed

    monkeypatch.setattr(onnxruntime_model, "PACKAGE", replace(onnxruntime_model.PACKAGE, pack=damaged))
    with pytest.raises(NotSupportedError, match="the onnxruntime model that was made cannot be loaded back"):
        write_package(network(), "o.ort", SourceModel(network()))
    assert sorted(path.name for path in folder.iterdir()) == ["in.onnx"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["-o", "o.aoti.pt2"], 2, "an ONNX file cannot become an AOTInductor package"),
        (["-o", "o.pte", "--opset", "18"], 2, "--opset is not for ExecuTorch programs"),
        (["-o", "o.pte", "--precision", "fp16"], 2, "--precision fp16 is not for ExecuTorch programs"),
        (["-o", "o.ort", "--triton", "repo"], 2, "--triton is not for onnxruntime models"),
        (["-o", "o.ort", "--workspace", "1GiB"], 2, "--workspace is for engines"),
        (["-o", "o.ort", "--json", "o.ort.json"], 2, "--json would replace the sidecar of OUT"),
    ],
)
def test_refusals_come_first_and_write_nothing(
    folder: Path, arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "in.onnx", *arguments]) == code
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["in.onnx"]


def test_a_file_or_its_sidecar_in_the_way(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("o.ort.json").write_text("mine")
    assert main(["export", "in.onnx", "-o", "o.ort"]) == 5
    assert "o.ort.json: already exists" in capsys.readouterr().err
    assert not Path("o.ort").exists()
    assert main(["export", "in.onnx", "-o", "o.ort", "--force"]) == 0


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        ("a.ort", b"\x14\0\0\0ORTM", ArtifactKind.ONNXRUNTIME),
        ("a.pte", b"\x3c\0\0\0ET12eh00", ArtifactKind.EXECUTORCH),
    ],
)
def test_a_package_is_told_by_its_content(
    folder: Path, name: str, start: bytes, kind: ArtifactKind, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes(start + bytes(60))
    assert sniff(name) is kind
    assert main(["inspect", name]) == 4
    assert f"is an {kind.value}, which cannot be read back into a model" in capsys.readouterr().err


def test_no_provider_here_compiles(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    if any(name in ep_context.COMPILING for name in onnxruntime.get_available_providers()):
        pytest.skip("one does")
    assert main(["export", "in.onnx", "-o", "o.ctx.onnx"]) == 4
    told = capsys.readouterr().err
    assert "no execution provider of onnxruntime here compiles models ahead of time (there are: " in told
    assert "CPU); install an onnxruntime with TensorRT" in told


def test_a_provider_that_compiles_nothing_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for it: the call is onnxruntime's own."""
    monkeypatch.setattr(ep_context, "COMPILING", ("CPUExecutionProvider",))
    with pytest.raises(NotSupportedError, match="CPUExecutionProvider cannot compile the model") as caught:
        ep_context.pack(network(), (), folder / "o.onnx")
    assert "write an .ort or .onnx file" in str(caught.value.hint)


def test_without_a_compiler_doctor_and_export_say_so(
    checkpoint: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = pytest.importorskip("torch._inductor.config")
    from convbn.commands.doctor import _packages

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(NotSupportedError, match="needs a C\\+\\+ compiler"):
            aot_inductor.require()
        assert main(["export", *checkpoint, "-o", "o.aoti.pt2"]) == 4
        part = next(part for part in _packages() if part.name == "OUT.aoti.pt2")
    assert "install g++" in capsys.readouterr().err
    assert not part.works
    assert part.hint == "install g++, or name one in CXX"


@pytest.mark.slow
def test_aot_inductor(checkpoint: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    try:
        aot_inductor.require()
    except NotSupportedError as error:
        pytest.skip(str(error))
    assert main(["export", *checkpoint, "-o", "o.aoti.pt2"]) == 0
    sidecar = described("o.aoti.pt2")
    assert sidecar["fold_summary"]["batchnorm"] == {"before": 1, "after": 0}
    assert sidecar["verify"]["runtime"] == "torch-cpu against AOTInductor"
    assert sidecar["facts"]["runs_on"]["device_key"] == "cpu"
    import packaged_net

    module = packaged_net.make().eval()
    module.load_state_dict(torch.load("net.pth", weights_only=True))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        made = torch._inductor.aoti_load_package("o.aoti.pt2")(x)
        torch.testing.assert_close(made, module(x), rtol=1e-4, atol=1e-5)
    assert sniff("o.aoti.pt2") is ArtifactKind.AOT_INDUCTOR
    assert main(["inspect", "o.aoti.pt2", "--trust-checkpoint"]) == 4
    assert "is an AOTInductor package, which cannot be read back" in capsys.readouterr().err


@pytest.mark.slow
def test_executorch(checkpoint: list[str]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("executorch")
    assert main(["export", *checkpoint, "-o", "o.pte"]) == 0
    sidecar = described("o.pte")
    assert sidecar["fold_summary"]["batchnorm"] == {"before": 1, "after": 0}
    assert sidecar["verify"]["runtime"] == "torch-cpu against ExecuTorch"
    assert sidecar["facts"] == {"delegates": ["XnnpackBackend"], "calls": {"delegate": 1, "kernel": 0}}
    import packaged_net
    from executorch.runtime import Runtime

    module = packaged_net.make().eval()
    module.load_state_dict(torch.load("net.pth", weights_only=True))
    x = torch.randn(2, 3, 8, 8)
    made = Runtime.get().load_program("o.pte").load_method("forward").execute([x])[0]
    with torch.no_grad():
        torch.testing.assert_close(made, module(x), rtol=1e-4, atol=1e-5)
    assert sniff("o.pte") is ArtifactKind.EXECUTORCH
