"""What a user's type checker sees: a call to ``convbn.fuse`` is checked, and its packages still resolve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

USER = """
import torch

import convbn
from convbn.fuse.operators import registry

model, report = convbn.fuse("model.onnx")
count: int = convbn.inspect("model.onnx").batchnorm.after
reveal_type(convbn.fuse)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))
reveal_type(convbn.fuse(net).model)
folded, told = convbn.fuse(net)
reveal_type(folded)
reveal_type(convbn.fuse(torch.export.export(net, (torch.ones(1, 3, 2, 2),))).model)
reveal_type(registry.rules())
"""


def test_the_call_is_typed(tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    script.write_text(USER)
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        str(root / "pyproject.toml"),
        str(script),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert result.returncode == 0, result.stdout
    assert "fallback=convbn.api.FuseResult[Any]" in result.stdout
    assert result.stdout.count('Revealed type is "torch.nn.modules.container.Sequential"') == 2
    assert 'Revealed type is "torch.export.exported_program.ExportedProgram"' in result.stdout
    assert "convbn.fuse.operators.rule.Rule" in result.stdout
