"""``--materialize`` as a user gives it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import convbn as package


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))


def test_a_checkpoint_folds_and_is_loaded_again(convbn: Any, tmp_path: Path) -> None:
    imports = (
        "import torch\nfrom torch import nn\nfrom torch.nn.utils.parametrizations import weight_norm\n\n"
    )
    source = inspect.getsource(build).replace(" -> nn.Module", "")
    (tmp_path / "own_network.py").write_text(imports + source)
    torch.save(build().state_dict(), tmp_path / "a.pth")
    given = ("a.pth", "--arch", "own_network:build", "--allow-cwd", "--input-shape", "x:1x3x8x8")
    without = json.loads(convbn("inspect", *given, "--json", "-").stdout)
    (kept,) = without["kept"]
    assert kept["reason"] == "parametrized"
    assert "--materialize" in kept["detail"]
    convbn("fuse", *given, "--materialize", "-o", "a.safetensors", "--json", "a.json")
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["batchnorm"]["after"], report["options"]["materialize"]) == (0, True)
    assert report["verify"]["status"] == "equal"
    loaded = package.load_fused(tmp_path / "a.safetensors", build)
    x = torch.randn(1, 3, 8, 8)
    assert torch.allclose(loaded(x), build().eval()(x), atol=1e-5)
