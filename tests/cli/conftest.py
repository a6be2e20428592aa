from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Conv → BatchNorm → ReLU → BatchNorm: one goes, one stays."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n", prefix="first"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        batchnorm("r", "y", prefix="second"),
    ]
    parameters = {**batchnorm_parameters(6, prefix="first"), **batchnorm_parameters(6, prefix="second")}
    path = tmp_path / "small.onnx"
    onnx.save(model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {"w": random(6, 3, 3, 3), **parameters}), path)
    return path


@pytest.fixture
def constant(tmp_path: Path) -> Path:
    """A model whose output is the same whatever goes in: comparing it proves nothing."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    weight = np.zeros((6, 3, 3, 3), np.float32)
    path = tmp_path / "constant.onnx"
    onnx.save(model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {"w": weight, **batchnorm_parameters(6)}), path)
    return path


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def convbn(tmp_path: Path) -> Run:
    """Run the command line as a user does, in an empty folder."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "convbn", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def fuse_schema() -> Any:
    return json.loads((Path(__file__).parents[2] / "fuse" / "fuse-report.schema.json").read_text())
