"""What a command would write is held against what it reads and writes before any work; standard output may fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("fuse", "-o", "out.onnx", "--json", "small.onnx"), 2, "which is read"),
        (("fuse", "-o", "out.onnx", "--json", "small.onnx", "--force"), 2, "which is read"),
        (("fuse", "-o", "out.onnx", "--json", "link.onnx"), 2, "which is read"),
        (("fuse", "-o", "out.onnx", "--json", "out.onnx"), 2, "replace OUT"),
        (("fuse", "-o", "out.onnx", "--json", "./out.onnx.data"), 2, "the weights of OUT"),
        (("fuse", "-o", "out.onnx", "--json", "nowhere/r.json"), 5, "does not exist"),
        (("fuse", "-o", "out.onnx", "--json", "other.onnx"), 5, "no report"),
        (("fuse", "-o", "out.onnx", "--seed", "-1"), 2, "--seed"),
        (("inspect", "--json", "small.onnx"), 2, "which is read"),
        (("inspect", "--json", "other.onnx"), 5, "no report"),
        (("bench", "--html", "small.onnx", "--force"), 2, "which is read"),
        (("bench", "--html", "r", "--junit", "r"), 2, "replace --html"),
        (("bench", "--step-summary", "small.onnx"), 2, "which is read"),
        (("bench", "--bencher", "-"), 2, "stdout"),
    ],
)
def test_no_report_takes_the_place_of_a_model(
    convbn: Any, small: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    (tmp_path / "other.onnx").write_bytes(small.read_bytes())
    os.link(small, tmp_path / "link.onnx")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = convbn(arguments[0], small, *arguments[1:])
    assert result.returncode == code, result.stderr
    assert told in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_report_of_before_is_replaced(convbn: Any, small: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert convbn("inspect", small, "--json", "report.json").returncode == 0
    assert (tmp_path / "report.json").stat().st_size


@pytest.mark.parametrize("arguments", [("inspect", "small.onnx", "--json", "-"), ("--version",)])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_a_sentence(small: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "convbn", *arguments],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    assert result.returncode == 5
    assert result.stderr.endswith("convbn: standard output: cannot be written: no space left on device\n")


def test_a_closed_stdout_is_found_before_anything_is_written(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convbn", "fuse", "small.onnx", "-o", "out.onnx"]
    shell = ["sh", "-c", 'exec "$@" >&-', "sh"]
    result = subprocess.run([*shell, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 5
    assert "standard output: is closed" in result.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert subprocess.run([*shell, *command, "--quiet"], cwd=tmp_path).returncode == 0
    assert (tmp_path / "out.onnx").exists()


def test_a_letter_that_the_terminal_lacks_is_named(convbn: Any, small: Path, tmp_path: Path) -> None:
    small.rename(tmp_path / "größe.onnx")
    result = convbn("inspect", "größe.onnx", "--json", "-", PYTHONIOENCODING="ascii")
    assert result.returncode == 5
    assert "cannot hold U+00F6 in its encoding, ascii" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("inspect", "models", "--json", "models/a.onnx"), "which is read"),
        (("fuse", "models", "-o", "out", "--json", "models/a.onnx"), "which is read"),
        (("fuse", "models", "-o", "out", "--json", "out/a.onnx"), "replace the result"),
        (("verify", "models", "models", "--json", "models/b.onnx"), "which is read"),
        (("export", "models", "-o", "out", "--suffix", ".onnx", "--json", "models/b.onnx"), "which is read"),
        (("bench", "models", "--json", "models/a.onnx", "--force"), "which is read"),
        (("bench", "apart.onnx", "--json", "apart.onnx.data", "--force"), "weights of apart.onnx"),
        (
            ("refit", "small.onnx", "--from", "new.onnx", "-o", "r.onnx", "--json", "new.onnx"),
            "which is read",
        ),
        (
            ("refit", "e.engine", "--from", "new.onnx", "-o", "r.engine", "--onnx", "new.onnx", "--force"),
            "--onnx would replace new.onnx",
        ),
        (("run", "plan.toml", "--json", "plan.toml", "--force"), "which is read"),
        (("run", "plan.toml"), "the html report would replace"),
        (("run", "plan.toml", "--html", "page.html", "--json", "models/b.onnx", "--force"), "is a model"),
    ],
)
def test_nor_of_one_of_many_of_weights_or_of_a_plan(
    convbn: Any, small: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / "models").mkdir()
    for name in ("models/a.onnx", "models/b.onnx", "new.onnx"):
        (tmp_path / name).write_bytes(small.read_bytes())
    onnx.save(
        onnx.load(small),
        tmp_path / "apart.onnx",
        save_as_external_data=True,
        location="apart.onnx.data",
        size_threshold=0,
    )
    (tmp_path / "e.engine").write_bytes(b"ftrt" + bytes(60))
    (tmp_path / "plan.toml").write_text(
        'output = "out"\n[[models]]\npath = "models/*.onnx"\n[[targets]]\nkind = "onnx"\n'
        '[reports]\nhtml = "models/a.onnx"\n'
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = convbn(*arguments)
    assert result.returncode == 2, result.stderr
    assert told in result.stderr
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: left[path] for path in before} == before


#: What is wrong with the command line alone, and the frameworks that need not be imported to say so.
WRONG = [
    (("fuse", "small.onnx", "-o", "out.txt"), 2, "cannot write a '.txt' file"),
    (("fuse", "small.onnx", "-o", "out.engine"), 2, "OUT may be .onnx, .pt2, .safetensors"),
    (
        ("fuse", "small.onnx", "-o", "out.onnx", "--skip", "batchnorm-into-cnov"),
        2,
        "did you mean batchnorm-into",
    ),
    (("fuse", "small.onnx", "-o", "out.onnx", "--inputs", "gone.npz"), 5, "gone.npz: does not exist"),
    (("fuse", "small.onnx", "-o", "out.pt2", "--external-data", "always"), 2, "is for ONNX files"),
    (("inspect", "small.onnx", "--arch", "resnet50"), 2, "names no architecture"),
    (("inspect", "small.onnx", "--arch", "timm:x", "--arch-arg", "y"), 2, "is not KEY=VALUE"),
    (("export", "small.onnx", "-o", "out.txt"), 2, "cannot write a '.txt' file"),
    (("verify", "small.onnx", "smal.onnx"), 5, "did you mean small.onnx?"),
    (("verify", "small.onnx", "small.onnx", "--runtime", "onnxruntime-gpu"), 2, "did you mean"),
    (("verify", "small.onnx", "small.onnx", "--preprocess", "imagenet"), 2, "needs --calibration"),
    (("bench", "small.onnx", "gone.onnx"), 5, "gone.onnx: does not exist"),
    (("bench", "small.onnx", "--runtime", "onnxrutime-cpu"), 2, "did you mean onnxruntime-cpu?"),
    (("bench", "small.onnx", "--precision", "fp61"), 2, "there is no precision 'fp61'"),
    (("bench", "small.onnx", "--alone", "small.onnx"), 2, "named one after the other"),
    (("refit", "small.onnx", "--from", "gone.onnx", "-o", "out.onnx"), 5, "gone.onnx: does not exist"),
    (("refit", "small.onnx", "--from", "small.onnx", "-o", "out.txt"), 2, "OUT may be .onnx, .engine"),
    (("report", "gone.json"), 5, "gone.json: does not exist"),
    (("run", "gone.toml"), 5, "gone.toml: does not exist"),
]


@pytest.mark.parametrize(("arguments", "code", "told"), WRONG)
def test_what_cannot_work_is_said_before_any_framework_is_imported(
    small: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    for name in ("torch", "onnx", "onnxruntime", "openvino"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported before it was needed')\n")
    result = subprocess.run(
        [sys.executable, "-m", "convbn", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))},
    )
    assert told in result.stderr
    assert result.returncode == code
    assert not any(tmp_path.glob("out.*"))


def test_layers_are_refused_before_outputs_are_compared(convbn: Any, small: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Conv2d(3, 6, 3).state_dict(), tmp_path / "conv.pth")
    arch = (
        "--arch",
        "torch.nn:Conv2d",
        *(f"--arch-arg={name}" for name in ("in_channels=3", "out_channels=6")),
    )
    result = convbn(
        "verify",
        "conv.pth",
        "conv.pth",
        *arch,
        "--arch-arg",
        "kernel_size=3",
        "--input-shape",
        "x:1x3x8x8",
        "--layers",
    )
    assert result.returncode == 2
    assert "compares the values of ONNX models" in result.stderr
    assert result.stdout == ""
