"""Faults that every command must survive alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.cli import main

MEASURING = ("--runtime", "onnxruntime-cpu@off", "--budget", "0.2", "--no-memory")


def network(*, bias: float | None = None, name: str = "bn") -> onnx.ModelProto:
    """Conv → BatchNorm → ReLU, the last one dead with a bias far below 0."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    parameters = batchnorm_parameters(24)
    if bias is not None:
        parameters["bn.beta"] = np.full(24, bias, np.float32)
    built = model(nodes, {"x": [2, 3, 6, 6]}, ["y"], {"w": random(24, 3, 3, 3), **parameters})
    built.graph.node[1].name = name
    return built


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(source: str) -> dict[str, tuple[str, ...]]:
    return {
        "inspect": ("inspect", source),
        "fuse": ("fuse", source, "-o", "out.onnx"),
        "verify": ("verify", source, source),
        "export": ("export", source, "-o", "out.onnx"),
        "bench": ("bench", source, *MEASURING),
    }


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("command", commands(""))
def test_pickled_code_runs_in_no_command(
    folder: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    torch.save({"state_dict": {"w": torch.zeros(2)}, "x": Evil()}, "evil.pth")
    arch = ("--arch", "torch.nn:Flatten", "--input-shape", "x:1x3")
    code = main([*commands("evil.pth")[command], *arch])
    said = capfd.readouterr()
    assert code == 3, said
    assert "mkdir" in said.err
    assert [path.name for path in folder.iterdir()] == ["evil.pth"]


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from convbn.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("fuse", "model.onnx", "-o", "old", "--force"),
        ("fuse", "model.onnx", "-o", "old", "--force", "--external-data", "always"),
        ("fuse", "model.onnx", "-o", "model.onnx", "--force"),
        ("export", "model.onnx", "-o", "old", "--force"),
        ("bench", "model.onnx", *MEASURING, "--json", "old", "--force"),
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-2:]),
)
def test_a_full_disk_leaves_the_old_file(folder: Path, arguments: tuple[str, ...]) -> None:
    """A limit on the size of a file stands in for the disk."""
    arguments = tuple(
        "old.onnx" if word == "old" and "bench" not in arguments else word for word in arguments
    )
    onnx.save(network(), "model.onnx")
    for name in ("old", "old.onnx"):
        Path(name).write_bytes(b"precious")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before["model.onnx"]) > 1000
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 5, result
    assert result.stderr.startswith("convbn: ")
    assert "too large" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


HOSTILE = "a\x1b[2J\x1b[31m\u202egnp.exe\r\n=cmd|' /C calc'!A0<script>"


@pytest.mark.parametrize("command", commands(""))
@pytest.mark.parametrize("place", ["batchnorm", "output", "error"])
def test_hostile_names_reach_no_terminal(
    folder: Path, command: str, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    built = network(name=HOSTILE if place == "batchnorm" else "bn")
    if place == "output":
        built.graph.node[2].output[0] = built.graph.output[0].name = HOSTILE
        built.graph.node[1].attribute.append(helper.make_attribute("training_mode", 0))
    if place == "error":
        built.graph.node[2].op_type = HOSTILE
    if place == "batchnorm":
        built.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    Path("model.onnx").write_bytes(built.SerializeToString())
    main(commands("model.onnx")[command])
    said = capfd.readouterr()
    for text in (said.out, said.err):
        assert not {"\x1b", "\u202e", "\r"} & set(text), text
        assert not any(line.startswith("=cmd") for line in text.splitlines())


@pytest.mark.slow
def test_without_torch_onnx_models_are_served(folder: Path) -> None:
    """Modules of these names that do not import stand in front of the real ones."""
    (folder / "broken").mkdir()
    for name in ("torch", "torchvision", "onnxscript", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        Path("broken", f"{name}.py").write_text("raise ImportError('libfoo.so is missing')\n")
    onnx.save(network(), "model.onnx")
    environment = {**os.environ, "PYTHONPATH": str(folder / "broken")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "convbn", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    for arguments in commands("model.onnx").values():
        result = run(*arguments, *(("--force",) if "-o" in arguments else ()))
        assert result.returncode == 0, result.stderr
    doctor = run("doctor")
    assert doctor.returncode == 0
    assert "libfoo.so is missing" in doctor.stdout
    wanted = run("export", "model.onnx", "-o", "out.engine", "--backend", "tensorrt-rtx")
    assert wanted.returncode == 4
    assert len(wanted.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["fuse", "verify", "export"])
def test_behind_dead_activations_the_fold_is_shown_where_it_happened(
    folder: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The outputs alone prove nothing, and of two models that is all that there is."""
    onnx.save(network(bias=-1e4), "model.onnx")
    assert main(commands("model.onnx")[command]) == (1 if command == "verify" else 0)
    said = capfd.readouterr()
    if command == "verify":
        assert "is 0 everywhere, which any model can give" in said.out + said.err
    else:
        assert "shown on the original's own values" in " ".join(said.out.split())
        assert Path("out.onnx").exists()
