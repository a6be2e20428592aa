"""Plans and the small models that they are of, for tests of runs in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from convbn.pipeline.outcome import Outcome, Output
from support.graphs import batchnorm, batchnorm_parameters, model, random

PLAN = """
output = "out"
[[models]]
path = "models/**/*.onnx"
[[targets]]
kind = "onnx"
[[targets]]
kind = "onnx"
name = "half"
precision = "fp16"
[reports]
json = "run.json"
"""


def save_network(path: Path, *, seed: int = 0, width: int = 6) -> None:
    """Conv → BatchNorm → ReLU."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    weights = {"w": random(width, 3, 3, 3, seed=seed), **batchnorm_parameters(width)}
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model(nodes, {"x": [2, 3, 8, 8]}, ["y"], weights), path)


def write_plan(folder: Path, *names: str, text: str = PLAN) -> Path:
    for seed, name in enumerate(names):
        save_network(folder / "models" / f"{name}.onnx", seed=seed)
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def start(folder: Path, *arguments: object, **facts: Any) -> subprocess.Popen[str]:
    """The command line as a user starts it, in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "convbn", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        **facts,
    )


def run(folder: Path, *arguments: object, code: int | None = 0, **facts: Any) -> tuple[int, str, str]:
    """The same, to its end."""
    process = start(folder, *arguments, **facts)
    out, err = process.communicate(timeout=300)
    assert code is None or process.returncode == code, f"{process.returncode}: {out}{err}"
    return process.returncode, out, err


def statuses(folder: Path) -> dict[str, str]:
    """What became of each step of the last run, by its JSON."""
    return {step["name"]: step["status"] for step in json.loads((folder / "run.json").read_text())["steps"]}


def whole(folder: Path) -> dict[str, bytes]:
    """All that was delivered; each file is a model that onnx takes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(path))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def outcomes(folder: Path, count: int = 2) -> list[Outcome]:
    """A model that failed, and others that were measured."""
    ratio = {"median": 0.8754, "low": 0.87, "high": 0.88}
    rows = [{"side": "folded", "ratio": ratio}, {"side": "fused by runtime", "ratio": {"median": 0.5}}]
    found = []
    for number in range(count):
        name = f"net{number}"
        fold = {"batchnorm": {"before": 3, "after": 0}, "bytes": 10}
        proof = {"status": "equal", "error": 1e-7, "noise": 2e-7}
        page = (Output(str(folder / "deep" / f"{name}.bench.html"), 10),)
        found += [
            Outcome(f"{name}/fold", "fold", name, "done", 1.0, fold),
            Outcome(f"{name}/prove", "prove", name, "done", 1.0, proof),
            Outcome(f"{name}/measure", "measure", name, "done", 1.0, {"rows": rows}, outputs=page),
        ]
    return [*found, Outcome("bad/fold", "fold", "bad", "failed", 0.1, None, "bad.onnx: is <no> model", 3)]
