"""Forwards under ``torch.no_grad()`` or ``torch.autocast``, which torch.export keeps as graphs of their own."""

from __future__ import annotations

from typing import Any

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
