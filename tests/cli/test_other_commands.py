"""``verify``, ``export``, ``bench`` and ``doctor`` as a user runs them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convbn.commands.doctor import _PACKAGES

ROOT = Path(__file__).parents[2]


def test_verify_equal_and_different(convbn: Any, small: Path, tmp_path: Path) -> None:
    assert convbn("fuse", small, "-o", "same.onnx").returncode == 0
    result = convbn("verify", small, "same.onnx", "--json", "-")
    assert result.returncode == 0
    assert json.loads(result.stdout)["status"] == "equal"
    other = onnx.load(tmp_path / "same.onnx")
    bias = next(t for t in other.graph.initializer if t.name == "w_bias")
    values = numpy_helper.to_array(bias).copy()
    values[2] += 0.01
    bias.raw_data = values.astype(np.float32).tobytes()
    onnx.save(other, tmp_path / "other.onnx")
    result = convbn("verify", small, "other.onnx")
    assert result.returncode == 1
    assert "different" in result.stdout


def test_bench_writes_every_report(convbn: Any, small: Path, tmp_path: Path) -> None:
    result = convbn(
        *("bench", small, "--runtime", "onnxruntime-cpu@off", "--budget", "0.5", "--threads", "1"),
        *("--json", "r.json", "--markdown", "r.md", "--html", "r.html"),
    )
    assert result.returncode == 0, result.stderr
    value = json.loads((tmp_path / "r.json").read_text())
    schema = json.loads((ROOT / "bench" / "bench-result.schema.json").read_text())
    jsonschema.validate(value, schema)
    case = value["cases"][0]
    assert [row["side"] for row in case["rows"]] == ["original", "folded", "fused by runtime"]
    assert case["fold"]["batchnorm"] == {"before": 2, "after": 1}
    assert "onnxruntime-cpu" in (tmp_path / "r.md").read_text()
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_bench_says_what_is_missing(convbn: Any, small: Path) -> None:
    result = convbn("bench", small, "--runtime", "torch-cpu", "--json", "-")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"convbn: {small}: nothing was measured; torch-cpu: ")
    assert last.endswith("; --allow-not-measured takes that as an answer")
    rows = json.loads(result.stdout)["cases"][0]["rows"]
    assert {row["status"] for row in rows} == {"not measured"}
    assert "--arch" in rows[0]["reason"]
    assert convbn("bench", small, "--runtime", "torch-cpu", "--allow-not-measured").returncode == 0


def test_export_onnx_without_a_fold(convbn: Any, small: Path, tmp_path: Path) -> None:
    assert convbn("export", small, "-o", "out.onnx", "--no-fuse").returncode == 0
    assert [n.op_type for n in onnx.load(tmp_path / "out.onnx").graph.node].count("BatchNormalization") == 2


def test_export_engine(convbn: Any, small: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    result = convbn("export", small, "-o", "out.engine", "--backend", "tensorrt-rtx")
    assert result.returncode == 0, result.stderr
    assert "Scale layers that TensorRT sees: 2 before, 1 after" in result.stdout
    sidecar = json.loads((tmp_path / "out.engine.json").read_text())
    jsonschema.validate(sidecar, json.loads((ROOT / "export" / "engine-sidecar.schema.json").read_text()))
    assert sidecar["fold_summary"]["batchnorm"] == {"before": 2, "after": 1}
    assert (tmp_path / "out.engine").stat().st_size == sidecar["engine"]["bytes"]


def test_doctor_tries_every_part(convbn: Any) -> None:
    result = convbn("doctor", "--json", "-")
    parts = {part["name"]: part for part in json.loads(result.stdout)["parts"]}
    assert result.returncode == 0
    for name in ("numpy", "onnx", "onnxruntime", "onnx-graphsurgeon", "onnxruntime-cpu"):
        assert parts[name]["works"], parts[name]
    for part in parts.values():
        assert part["works"] or part["hint"], part


def test_doctor_fails_without_a_core_part(convbn: Any, tmp_path: Path) -> None:
    """A module of that name that does not import stands in front of the real one."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo.so is missing')\n")
    result = convbn("doctor", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert re.search(r"^broken +onnxruntime ", result.stdout, re.MULTILINE)
    assert "libfoo.so is missing" in result.stdout


def test_interrupt_leaves_nothing(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convbn", "bench", str(small), "--budget", "60", "--html", "r.html"]
    terminal, stderr = pty.openpty()  # on which it tells its progress
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=stderr, stdout=subprocess.DEVNULL
    )
    os.close(stderr)
    told = b""
    while b"timing" not in told:
        told += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the other end of a terminal was closed
        while more := os.read(terminal, 4096):
            told += more
    os.close(terminal)
    assert process.wait() == 130
    assert told.endswith(b"convbn: interrupted\r\n")
    assert b"Traceback" not in told
    assert not (tmp_path / "r.html").exists()


def test_doctor_knows_every_package_that_users_can_add() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {distribution for _, distribution, *_ in _PACKAGES}
    # Backends, runtimes and packages of other runtimes have lines of their own; requests and onnx-ir come with others.
    found |= {"openvino", "executorch", "tensorrt", "tensorrt-rtx-cu13", "requests", "onnx-ir"}
    for name, listed in extras["optional-dependencies"].items():
        if name not in ("all", "dev", "docs", "fuzz", "peers"):
            wanted = {re.split(r"[>=<;\[ ]", one)[0] for one in listed} - {"convbn"}
            assert wanted <= found, name
