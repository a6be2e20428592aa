"""Real architectures, both ways: no BatchNorm left, and the same outputs."""

from __future__ import annotations

import pytest
import torch
from support.graphs import operators
from support.networks import randomised, torchvision_models
from torch import nn

import convbn

BOUND = 1e-5
SIZE = {"resnet50": 64, "mobilenet_v2": 96}


def worst(report: convbn.Report) -> float:
    assert report.verify["status"] == "equal"
    return max(float(output["rel_error"]) for output in report.verify["outputs"])


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    module = randomised(torchvision_models().get_model(name))
    example = torch.randn(1, 3, SIZE[name], SIZE[name])
    count = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())

    folded, report = convbn.fuse(module, example)
    assert (report.batchnorm.before, report.batchnorm.after) == (count, 0)
    assert type(folded) is type(module)
    assert worst(report) < BOUND

    unfused = convbn.export_onnx(module, example, fold=False)
    assert operators(unfused).count("BatchNormalization") == count
    fused, report = convbn.fuse(unfused)
    assert (report.batchnorm.before, report.batchnorm.after) == (count, 0)
    assert operators(fused).count("BatchNormalization") == 0
    assert worst(report) < BOUND


class Ranks(nn.Module):
    """ConvTranspose, Linear, Conv1d and Conv3d, each with a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(6, 6, 3, 2, 1, 1, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.flat = nn.Sequential(
            nn.Conv1d(6, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm1d(8), nn.ReLU()
        )
        self.deep = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU())
        self.full = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.flat(self.up(x).flatten(2))
        return self.full(self.deep(y.reshape(-1, 8, 4, 4, 4)).mean((2, 3, 4)))


def test_every_kind_of_layer() -> None:
    torch.manual_seed(0)
    module, example = randomised(Ranks()), torch.randn(2, 6, 4, 4)
    _, report = convbn.fuse(module, example)
    assert (report.batchnorm.before, report.batchnorm.after) == (4, 0)
    assert worst(report) < BOUND
    unfused = convbn.export_onnx(module, example, fold=False)
    _, report = convbn.fuse(unfused)
    assert (report.batchnorm.before, report.batchnorm.after) == (4, 0)
    assert worst(report) < BOUND
    program = torch.export.export(module, (example,), strict=False)
    fused, report = convbn.fuse(program)
    assert (report.batchnorm.before, report.batchnorm.after) == (4, 0)
    assert isinstance(fused, torch.export.ExportedProgram)
    assert worst(report) < BOUND


def test_the_baseline_really_holds_its_batchnorms() -> None:
    """PyTorch's exporter folds on its own unless told otherwise, and would make the comparison vacuous."""
    module, example = randomised(Ranks()), torch.randn(2, 6, 4, 4)
    assert operators(convbn.export_onnx(module, example, fold=False)).count("BatchNormalization") == 4
    assert operators(convbn.export_onnx(module, example)).count("BatchNormalization") == 0
