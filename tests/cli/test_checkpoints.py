"""Checkpoints through the command line: weights in, every kind of artefact out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.graphs import operators
from support.networks import randomised

ARCHITECTURE = """
from torch import nn


def net(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )
"""
OPTIONS = ("--arch", "small_net:net", "--input-shape", "x:2x3x8x8")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A state dict as training scripts leave it: wrapped, and with a prefix."""
    namespace: dict[str, Any] = {}
    exec(ARCHITECTURE, namespace)  # noqa: S102 - the text above
    (tmp_path / "small_net.py").write_text(ARCHITECTURE)
    torch.manual_seed(0)
    module = randomised(namespace["net"]())
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def fuse(convbn: Any, path: Path, out: str, *more: str) -> Any:
    return convbn("fuse", path, "-o", out, *OPTIONS, "--json", "-", *more, PYTHONPATH=str(path.parent))


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
    assert sorted(tensors) == ["0.bias", "0.weight", "3.bias", "3.weight", "7.bias", "7.weight"]
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["convbn"])
    assert metadata["batchnorm"] == {"before": 2, "after": 0}


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
        "fuse", checkpoint, "-o", "out.onnx", "--arch", "small_net:net", PYTHONPATH=str(checkpoint.parent)
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


def test_bench_measures_both_forms(convbn: Any, checkpoint: Path) -> None:
    runtimes = "onnxruntime-cpu@off,torch-cpu"
    result = convbn(
        *("bench", checkpoint, *OPTIONS, "--runtime", runtimes, "--budget", "0.5", "--json", "-"),
        PYTHONPATH=str(checkpoint.parent),
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [(row["runtime"], row["status"]) for row in rows] == [
        ("onnxruntime-cpu@off", "measured"),
        ("onnxruntime-cpu@off", "measured"),
        ("torch-cpu", "measured"),
        ("torch-cpu", "measured"),
    ]
