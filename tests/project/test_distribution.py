"""The wheel built from the source distribution: exactly our files, and a doctor that needs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_exactly_the_packages(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"convbn/py.typed"}
    for pattern in ("*.py", "*.schema.json", "*.css"):
        for path in (ROOT / "src" / "convbn").glob(f"**/{pattern}"):
            expected.add("/".join(("convbn", *path.relative_to(ROOT / "src" / "convbn").parts)))
        for room in ("fuse", "export", "bench"):
            for path in (ROOT / room).rglob(pattern):
                expected.add("/".join(("convbn", *path.relative_to(ROOT).parts)))
    assert names == expected


def test_doctor_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Nothing but convbn itself: doctor must say so part by part, each with the command that mends it."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    result = subprocess.run(
        [python, "-m", "convbn", "doctor", "--json", "-"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    parts = {part["name"]: part for part in json.loads(result.stdout)["parts"]}
    for name in ("numpy", "onnx", "onnxruntime", "torch", "tensorrt-rtx"):
        assert not parts[name]["works"]
        assert "pip install" in parts[name]["hint"]
    help_text = subprocess.run([python, "-m", "convbn", "--help"], capture_output=True, text=True, check=True)
    assert "fuse" in help_text.stdout
    missing = subprocess.run(
        [python, "-m", "convbn", "inspect", __file__], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 4
    assert "is not installed" in missing.stderr
    assert "pip install" in missing.stderr
