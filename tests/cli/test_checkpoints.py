"""Checkpoints through the command line: weights in, every kind of artefact out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.graphs import operators
from support.networks import randomised

from convbn.cli import parser
from convbn.export.checkpoints.limits import Limits

ARCHITECTURE = """
from torch import nn


def net(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )
"""
OPTIONS = ("--arch", "small_net:net", "--input-shape", "x:2x3x8x8")


def namespace() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(ARCHITECTURE, found)  # noqa: S102 - the text above
    return found


def path_with(folder: Path) -> str:
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A state dict as training scripts leave it: wrapped, and with a prefix."""
    (tmp_path / "small_net.py").write_text(ARCHITECTURE)
    torch.manual_seed(0)
    module = randomised(namespace()["net"]())
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def fuse(convbn: Any, path: Path, out: str, *more: str) -> Any:
    return convbn("fuse", path, "-o", out, *OPTIONS, "--json", "-", *more, PYTHONPATH=path_with(path.parent))


def test_to_onnx(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    result = fuse(convbn, checkpoint, "out.onnx")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["batchnorm"] == {"before": 2, "after": 0}
    assert report["verify"]["status"] == "equal"
    assert any("module." in note for note in report["input"]["notes"])
    model = onnx.load(tmp_path / "out.onnx")
    assert operators(model).count("BatchNormalization") == 0
    assert [value.name for value in model.graph.input] == ["x"]


def test_to_program(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    result = fuse(convbn, checkpoint, "out.pt2")
    assert result.returncode == 0, result.stderr
    program = torch.export.load(tmp_path / "out.pt2")
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)


def test_to_safetensors(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    result = fuse(convbn, checkpoint, "out.safetensors")
    assert result.returncode == 0, result.stderr
    tensors = load_file(tmp_path / "out.safetensors")
    assert sorted(name for name, tensor in tensors.items() if tensor.numel()) == [
        "0.bias",
        "0.weight",
        "3.bias",
        "3.weight",
        "7.bias",
        "7.weight",
    ]
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["convbn"])
    assert metadata["batchnorm"] == {"before": 2, "after": 0}
    assert (metadata["arch"], metadata["arch_args"]) == ("small_net:net", [])
    keys = {key["old"] or key["new"]: key for key in json.loads(result.stdout)["keys"]}
    assert keys["0.weight"]["status"] == "changed"
    assert keys["0.bias"]["old"] is None
    assert (keys["1.weight"]["status"], keys["1.weight"]["into"]) == ("gone", ["0"])


@pytest.mark.slow
def test_a_folded_checkpoint_is_read_back(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    """With its architecture it is a model like any other: compared with the original, folded once more."""
    assert fuse(convbn, checkpoint, "out.safetensors", "--no-verify").returncode == 0
    environment = {"PYTHONPATH": path_with(tmp_path)}
    answer = convbn("verify", checkpoint, "out.safetensors", *OPTIONS, "--json", "-", **environment)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["status"] == "equal"
    report = json.loads(convbn("inspect", "out.safetensors", *OPTIONS, "--json", "-", **environment).stdout)
    assert report["batchnorm"] == {"before": 0, "after": 0}
    assert any("earlier fold" in note for note in report["input"]["notes"])
    wrong = convbn("inspect", "out.safetensors", *OPTIONS, "--arch-arg", "width=4", **environment)
    assert wrong.returncode == 3
    assert "it was folded from small_net:net" in wrong.stderr


@pytest.mark.slow
def test_a_program_goes_in_and_comes_out(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    module = randomised(namespace()["net"]())
    program = torch.export.export(module, (torch.randn(2, 3, 8, 8),), strict=False)
    torch.export.save(program, tmp_path / "in.pt2")
    refused = convbn("fuse", "in.pt2", "-o", "out.pt2")
    assert refused.returncode == 3
    assert "--trust-checkpoint" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    for out in ("out.pt2", "out.onnx"):
        result = convbn("fuse", "in.pt2", "-o", out, "--trust-checkpoint", "--json", "-")
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["batchnorm"] == {"before": 2, "after": 0}
        assert report["verify"]["status"] == "equal"
    folded = torch.export.load(tmp_path / "out.pt2")
    assert not any("batch_norm" in str(node.target) for node in folded.graph.nodes)
    assert operators(onnx.load(tmp_path / "out.onnx")).count("BatchNormalization") == 0
    not_so = convbn("fuse", "in.pt2", "-o", "out.safetensors", "--trust-checkpoint")
    assert not_so.returncode == 2
    assert "OUT may be .onnx, .pt2" in not_so.stderr


def test_the_current_folder_only_when_asked(convbn: Any, checkpoint: Path) -> None:
    """Under ``python -m``, which puts it first in the path, too."""
    refused = convbn("inspect", checkpoint, *OPTIONS)
    assert refused.returncode == 3
    assert "no module 'small_net'" in refused.stderr
    assert "--allow-cwd" in refused.stderr
    assert convbn("inspect", checkpoint, *OPTIONS, "--allow-cwd").returncode == 0


def test_a_file_of_the_current_folder_is_not_imported_by_name(convbn: Any, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("open('ran', 'w')\n")
    (tmp_path / "in.pth").write_bytes(b"\x80\x02N.")
    convbn("inspect", "in.pth", "--arch", "timm:resnet18")
    assert not (tmp_path / "ran").exists()


def test_options_of_checkpoints(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({"model": {}, "best": state}, tmp_path / "two.pth")
    environment = {"PYTHONPATH": path_with(tmp_path)}
    missing = convbn("inspect", "two.pth", *OPTIONS, **environment)
    assert missing.returncode == 3
    assert "holds no weights" in missing.stderr
    assert convbn("inspect", "two.pth", *OPTIONS, "--checkpoint-key", "best", **environment).returncode == 0
    small = convbn("inspect", "two.pth", *OPTIONS, "--max-pickle-mib", "0", **environment)
    assert small.returncode == 2
    assert "--max-pickle-mib" in small.stderr


def test_the_caps_are_those_of_the_library() -> None:
    options = parser().parse_args(["inspect", "x"])
    assert Limits(options.max_pickle_mib, options.max_unpacked_mib) == Limits()


def test_a_hub_that_is_out_of_reach(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    result = convbn("fuse", "hf-hub:someone/net", "-o", "out.onnx", **offline)
    assert result.returncode == 5
    assert "is not in the cache and cannot be fetched" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()


def test_safetensors_in(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    plain = {name.removeprefix("module."): tensor.contiguous() for name, tensor in state.items()}
    save_file(plain, tmp_path / "net.safetensors")
    assert fuse(convbn, tmp_path / "net.safetensors", "out.onnx").returncode == 0


def test_architecture_is_needed(convbn: Any, checkpoint: Path) -> None:
    result = convbn("fuse", checkpoint, "-o", "out.onnx")
    assert result.returncode == 2
    assert "--arch" in result.stderr


def test_shapes_are_needed(convbn: Any, checkpoint: Path) -> None:
    result = convbn(
        "fuse",
        checkpoint,
        "-o",
        "out.onnx",
        "--arch",
        "small_net:net",
        PYTHONPATH=path_with(checkpoint.parent),
    )
    assert result.returncode == 2
    assert "--input-shape" in result.stderr


def test_wrong_architecture(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    result = fuse(convbn, checkpoint, "out.onnx", "--arch-arg", "width=4")
    assert result.returncode == 3
    assert "net.pth" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()


def test_pickled_code_does_not_run(convbn: Any, tmp_path: Path) -> None:
    """The file names a function to call while it is loaded; it must not be called."""
    (tmp_path / "evil.py").write_text("def boom():\n    open('ran', 'w')\n    return {}\n")
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return exec, ("open('ran', 'w')",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth", pickle_module=pickle)
    result = convbn("fuse", "evil.pth", "-o", "out.onnx", *OPTIONS)
    assert result.returncode == 3
    assert "exec" in result.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_bench_measures_both_forms(convbn: Any, checkpoint: Path) -> None:
    runtimes = "onnxruntime-cpu@off,torch-cpu"
    result = convbn(
        *("bench", checkpoint, *OPTIONS, "--runtime", runtimes, "--budget", "0.5", "--json", "-"),
        PYTHONPATH=path_with(checkpoint.parent),
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["cases"][0]["rows"]
    assert {row["status"] for row in rows} == {"measured"}
    assert [(row["runtime"], row["side"]) for row in rows] == [
        ("onnxruntime-cpu@off", "original"),
        ("onnxruntime-cpu@off", "folded"),
        ("onnxruntime-cpu@off", "fused by runtime"),
        ("torch-cpu", "original"),
        ("torch-cpu", "folded"),
    ]


def test_names_of_training_tools(convbn: Any, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({"model": state, "ema": state}, tmp_path / "two.pth")
    environment = {"PYTHONPATH": path_with(tmp_path)}
    strict = convbn("inspect", "two.pth", *OPTIONS, "--strict", **environment)
    assert strict.returncode == 1
    assert "not ema (--checkpoint-key ema would take that)" in strict.stderr
    chosen = ("--checkpoint-key", "ema", "--strict")
    assert convbn("inspect", "two.pth", *OPTIONS, *chosen, **environment).returncode == 0
    prefixed = {prefix + name: tensor for name, tensor in state.items() for prefix in ("a.", "b.")}
    torch.save({**prefixed, "a.more": torch.zeros(1)}, tmp_path / "both.pth")
    for options, code, told in (
        ((), 3, "--strip-prefix a."),
        (("--strip-prefix", "a"), 3, "1 unexpected: more; "),
        (("--strip-prefix", "a", "--drop-unexpected"), 0, ""),
        (("--strip-prefix", "c"), 2, "they begin with a, b"),
    ):
        result = convbn("inspect", "both.pth", *OPTIONS, *options, **environment)
        assert (result.returncode, told in result.stderr) == (code, True), result.stderr
