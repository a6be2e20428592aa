"""Forwards under ``torch.no_grad()`` or ``torch.autocast``, which torch.export keeps as graphs of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import convbn

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            features = torch.tanh(self.norm(self.conv(x)))
        return features, self.last(features)


def test_a_program_folds_through_no_grad(randomised: Any) -> None:
    module = randomised(NoGrad())
    program = torch.export.export(module, (X,), strict=False)
    model, report = convbn.fuse(program)
    assert (report.batchnorm.before, report.batchnorm.after) == (1, 0)
    found, wanted = model.module()(X), module(X)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    # No gradient flows into what stood under no_grad, as before.
    assert [tensor.requires_grad for tensor in found] == [False, True]
    assert [spec.arg.name for spec in model.graph_signature.output_specs] == [
        spec.arg.name for spec in program.graph_signature.output_specs
    ]


def test_a_module_folds_under_autocast(randomised: Any) -> None:
    class Autocast(NoGrad):
        def forward(self, x: torch.Tensor) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.norm(self.conv(x))
            return y.float()

    module = randomised(Autocast())
    _, report = convbn.fuse(module, X)
    assert (report.batchnorm.before, report.batchnorm.after) == (1, 0)


class Mixed(nn.Module):
    """Two regions in half precision, and float32 between and behind them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.last, self.norm = nn.Linear(16, 8), nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            y = self.first(x)
        y = y.float().mean((2, 3))
        with torch.autocast("cpu", dtype=self.dtype):
            y = self.norm(self.last(y))
        return y.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["module", "program"])
def test_folds_under_autocast_are_judged_in_the_type_that_it_computes_in(
    form: str, dtype: torch.dtype, randomised: Any
) -> None:
    module = randomised(Mixed(dtype))
    with torch.no_grad():
        wanted = module(X)
    if form == "module":
        model, report = convbn.fuse(module, X)
    else:
        program = torch.export.export(module, (X,))
        code = program.graph_module.code
        folded, report = convbn.fuse(program)
        assert program.graph_module.code == code
        model = folded.module()
    assert (report.batchnorm.before, report.batchnorm.after) == (2, 0)
    assert report.verify["status"] == "equal"
    assert 0.01 < report.verify["outputs"][0]["bound"] < 0.1
    with torch.no_grad():
        found = model(X)
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 0.02
