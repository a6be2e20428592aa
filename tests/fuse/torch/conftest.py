"""Helpers for the PyTorch frontend's tests: models with real statistics, and one fold from end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.networks import torchvision_models
from torch import nn

import convbn.fuse.fold
from convbn.fuse.refusal import Reason
from convbn.fuse.report import Report


@dataclass
class Outcome:
    report: Report
    folded: dict[str, str]
    kept: dict[str, Reason]
    details: dict[str, str]
    model: Any


def _randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, scales and shifts that a wrong fold cannot hide behind; negative scales among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            mean = part._buffers.get("running_mean")
            if mean is None:
                continue
            mean.copy_(torch.randn(mean.shape, generator=generator))
            part.running_var.copy_(torch.rand(mean.shape, generator=generator) + 0.5)
            if part.weight is not None:
                part.weight.copy_(torch.randn(mean.shape, generator=generator) + 0.3)
                part.bias.copy_(torch.randn(mean.shape, generator=generator))
    return module.eval()


def _outcome(model: Any, inputs: tuple[Any, ...] | None = None) -> Outcome:
    folding = convbn.fuse.fold.fold(model, inputs)
    report = folding.report
    return Outcome(
        report,
        {folded.name: ", ".join(folded.into) for folded in report.folded},
        {item.name: item.reason for item in report.kept},
        {item.name: item.detail for item in report.kept},
        folding.model,
    )


def _fold_module(module: nn.Module, *inputs: Any) -> Outcome:
    """Fold a module, with inputs through torch.export, without by tracing; it must not change."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    text, flags = repr(module), [part.training for part in module.modules()]
    outcome = _outcome(module, inputs or None)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (text, flags) == (repr(module), [part.training for part in module.modules()])
    return outcome


def _fold_program(program: Any) -> Outcome:
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    code = program.graph_module.code
    outcome = _outcome(program)
    assert program.graph_module.code == code
    assert all(torch.equal(tensor, program.state_dict[name]) for name, tensor in before.items())
    return outcome


def _difference(a: Any, b: Any, *inputs: Any) -> float:
    """Largest difference between two models' outputs, relative to the largest output."""
    with torch.no_grad():
        expected, found = a(*inputs), b(*inputs)
    if isinstance(expected, torch.Tensor):
        expected, found = (expected,), (found,)
    return max(
        float(((x.double() - y.double()).abs().max() / x.double().abs().max()).detach())
        for x, y in zip(expected, found, strict=True)
    )


@pytest.fixture
def randomised() -> Callable[..., nn.Module]:
    return _randomise


@pytest.fixture
def fold() -> Callable[..., Outcome]:
    return _fold_module


@pytest.fixture
def fold_program() -> Callable[..., Outcome]:
    return _fold_program


@pytest.fixture
def difference() -> Callable[..., float]:
    return _difference


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def torchvision_names() -> None:
    """Let torchvision be imported beside a torch whose build lacks its compiled operators."""
    try:
        torchvision_models()
    except ModuleNotFoundError:
        pytest.skip("torchvision is not installed")
