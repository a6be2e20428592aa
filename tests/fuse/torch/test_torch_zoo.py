"""Whole architectures, small: every BatchNorm behind a convolution goes, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

pytestmark = pytest.mark.usefixtures("torchvision_names")


def left(model):
    return [path for path, part in model.named_modules() if isinstance(part, _BatchNorm)]


def mild(model):
    """Statistics that a deep stack of layers survives without overflow, negative scales among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, _BatchNorm):
                part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.1)
                part.running_var.copy_(torch.rand(part.running_mean.shape, generator=generator) + 0.5)
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * 0.3 + 1)
                part.bias.copy_(torch.randn(part.weight.shape, generator=generator) * 0.1)
    return model.eval()


def whole(model, fold, fold_program, difference, size=64):
    x = torch.randn(2, 3, size, size)
    outcomes = [fold(model, x), fold(model)]
    for outcome in outcomes:
        assert difference(model, outcome.model, x) < 1e-5
        assert type(outcome.model) is type(model)
        outcome.model.load_state_dict(outcome.model.state_dict())
    assert outcomes[0].folded == outcomes[1].folded
    program = fold_program(torch.export.export(model, (x,), strict=False))
    assert program.folded == outcomes[0].folded
    assert difference(model, program.model.module(), x) < 1e-5
    return outcomes[0]


def test_torchvision_resnet18(fold, fold_program, difference):
    from torchvision.models import resnet18

    outcome = whole(mild(resnet18(weights=None)), fold, fold_program, difference)
    assert len(outcome.folded) == 20
    assert not left(outcome.model)
    assert outcome.folded["layer1.0.bn1"] == "layer1.0.conv1"


@pytest.mark.parametrize(("name", "folded"), [("resnet18", 20), ("efficientnet_b0", 49)])
def test_timm(name, folded, fold, fold_program, difference):
    timm = pytest.importorskip("timm")
    outcome = whole(mild(timm.create_model(name)), fold, fold_program, difference)
    assert len(outcome.folded) == folded
    assert not left(outcome.model)
    assert not outcome.kept


def test_preactivation_leaves_no_batchnorm_and_spoils_no_shortcut(fold, fold_program, difference):
    timm = pytest.importorskip("timm")
    model = mild(timm.create_model("resnetv2_50", layers=(1, 1, 1, 1)))
    outcome = whole(model, fold, fold_program, difference)
    assert not outcome.kept
    assert not left(outcome.model)
    for name in outcome.folded:
        part = outcome.model.get_submodule(name)
        assert isinstance(part, nn.Sequential)
        assert not part.act.inplace
