"""The caller's object is left untouched: compared deeply before and after, for every entry point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.snapshot import snapshot
from torch import nn
from torch.export import ExportedProgram

import convbn
from convbn.bench.measure.options import ProtocolOptions
from convbn.export.torch.save import export_onnx, export_program, save_program

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Busy(nn.Module):
    """A forward with every side effect that a module's own objects can show."""

    anchors: Any = torch.empty(0)
    shape: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.training_norm = nn.BatchNorm2d(4)
        self.register_buffer("peak", torch.zeros(()))
        self.register_buffer("unsaved", torch.zeros(4), persistent=False)
        self.calls = 0
        self.history: list[Any] = []
        self.cache: dict[str, Any] = {}
        self.last: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.shape != x.shape:
            self.anchors, self.shape = x.mean((0, 2, 3)), x.shape
        y: torch.Tensor = self.training_norm(self.norm(self.conv(x)))
        self.peak.copy_(torch.maximum(self.peak, y.abs().max()))
        self.unsaved += 1
        self.last = y
        self.history.append(y.shape)
        self.cache["last"] = y
        return y.relu()


def busy() -> Busy:
    torch.manual_seed(0)
    module = Busy().eval()
    module(X)  # as in a process that has used it
    module.training_norm.train()
    return module


def bench(model: Any) -> None:
    quick = ProtocolOptions(
        min_blocks=1, max_blocks=1, block_seconds=0.001, warmup_seconds=0.001, memory=False
    )
    convbn.bench(model, model, runtimes=["torch-cpu"], example_inputs=X, options=quick)


ENTRIES: dict[str, Callable[[Any, Path], Any]] = {
    "fuse": lambda model, _: convbn.fuse(model, X),
    "fuse, identities taken out": lambda model, _: convbn.fuse(model, X, keep_identities=False),
    "inspect": lambda model, _: convbn.inspect(model, X),
    "export, folded": lambda model, _: convbn.export_onnx(
        model, X, options=convbn.FuseOptions(verify=isinstance(model, nn.Module))
    ),
    "verify": lambda model, _: convbn.verify(model, model, example_inputs=X),
    "export_onnx": lambda model, _: export_onnx(model, (X,)),
    "export_program": lambda model, _: export_program(model, (X,)),
    "save_program": lambda model, folder: save_program(model, (X,), folder / "model.pt2"),
    "bench": lambda model, _: bench(model),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_modules(name: str, tmp_path: Path) -> None:
    module = busy()
    before = snapshot(module)
    ENTRIES[name](module, tmp_path)
    assert snapshot(module) == before


@pytest.mark.parametrize("name", ENTRIES)
def test_inputs_that_a_forward_writes_to(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writing(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = super().forward(x.mul_(0.5))
            return result

    x = X.clone()
    monkeypatch.setitem(globals(), "X", x)
    before = snapshot(x)
    ENTRIES[name](Writing(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), tmp_path)
    assert snapshot(x) == before


def test_modules_without_inputs_and_saved(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
    before = snapshot(module)
    result = convbn.fuse(module)
    convbn.inspect(module)
    convbn.save_fused(module, result, tmp_path / "model.safetensors")
    convbn.load_fused(tmp_path / "model.safetensors", module)
    convbn.is_folded(module)
    assert snapshot(module) == before


@pytest.mark.parametrize("name", ENTRIES)
def test_programs_whose_statistics_a_run_would_change(name: str, tmp_path: Path) -> None:
    program = torch.export.export(busy_program(), (X,))
    before = program_snapshot(program)
    ENTRIES[name](program, tmp_path)
    assert program_snapshot(program) == before


def busy_program() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ).eval()
    module[3].train()
    return module


def program_snapshot(program: ExportedProgram) -> Any:
    tensors = {**program.state_dict, **program.constants}
    return snapshot(tensors), program.graph_module.code, str(program.graph_signature)


def test_a_fold_does_not_run_the_module_that_it_gives_back(tmp_path: Path) -> None:
    """What a run leaves behind stays out of the result, too."""
    folded = convbn.fuse(busy(), X).model
    assert (folded.calls, len(folded.history), float(folded.unsaved[0])) == (1, 1, 1.0)


def test_the_snapshot_sees_such_changes() -> None:
    module = busy()
    before = snapshot(module)
    for change in (
        lambda m: m.history.append(1),
        lambda m: setattr(m, "calls", m.calls + 1),
        lambda m: m.peak.add_(1),
        lambda m: setattr(m, "last", m.last.clone()),
        lambda m: m.norm.train(),
        lambda m: setattr(m.conv, "anything", None),
    ):
        change(module)
        after = snapshot(module)
        assert after != before
        before = after
