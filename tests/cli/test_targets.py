"""What a command would write is held against what it reads and writes before any work; standard output may fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


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
