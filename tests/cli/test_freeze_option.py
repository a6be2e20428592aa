"""``--freeze`` as a user gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import operators


@pytest.fixture
def overridable(small: Path) -> Path:
    """The small model with its convolution's weight among the inputs."""
    built = onnx.load(small)
    built.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 3, 3, 3]))
    onnx.save(built, small)
    return small


def test_fuse_freezes(convbn: Any, overridable: Path, tmp_path: Path) -> None:
    result = convbn("fuse", overridable, "-o", "out.onnx", "--freeze")
    assert result.returncode == 0, result.stderr
    folded = onnx.load(tmp_path / "out.onnx")
    assert operators(folded) == ["Conv", "Relu", "BatchNormalization"]
    assert [value.name for value in folded.graph.input] == ["x"]


def test_without_it_nothing_folds_and_the_reason_is_told(convbn: Any, overridable: Path) -> None:
    report = json.loads(convbn("inspect", overridable, "--json", "-").stdout)
    assert "overridable-initializer" in {entry["reason"] for entry in report["kept"]}
    frozen = json.loads(convbn("inspect", overridable, "--freeze", "--json", "-").stdout)
    assert (report["batchnorm"]["after"], frozen["batchnorm"]["after"]) == (2, 1)
    assert (report["options"]["freeze"], frozen["options"]["freeze"]) == (False, True)
