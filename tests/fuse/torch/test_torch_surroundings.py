"""Where a fold happens: modes that the caller is in, parts that torch.compile or DataParallel made, wrappers around."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

import convbn

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def blocks(*channels: int) -> nn.Sequential:
    pairs = itertools.pairwise(channels)
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(i, o, 3, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o in pairs)
    )


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("inputs", [(), (X,)], ids=["traced", "exported"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_the_caller_is_in_is_no_part_of_the_model(
    mode: str, inputs: tuple[Any, ...], randomised: Any
) -> None:
    module = randomised(blocks(3, 16, 16))
    plain = convbn.fuse(module, *inputs)
    with MODES[mode]():
        model, report = convbn.fuse(module, *inputs)
    assert (report.batchnorm.before, report.batchnorm.after) == (2, 0)
    assert [str(fold) for fold in report.folded] == [str(fold) for fold in plain.report.folded]
    assert report.verify["status"] == plain.report.verify["status"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.model.state_dict()[name])
        assert not tensor.is_inference()
    model.train()(X).sum().backward()


def test_a_module_that_was_made_in_inference_mode(randomised: Any, difference: Any) -> None:
    with torch.inference_mode():
        module = randomised(blocks(3, 4))
        x = X + 0
    model, report = convbn.fuse(module, x)
    assert report.batchnorm.after == 0
    assert report.verify["status"] == "equal"
    assert {key.status for key in report.keys} == {"changed", "gone", "new"}
    assert difference(module, model, X) < 2e-6
    convbn.fuse(module, x, inplace=True)
    assert difference(module, model, X) == 0


class CompiledForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = blocks(3, 4)

    @torch.compile(backend="eager")
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


PARTS: dict[str, Callable[[], nn.Module]] = {
    "compiled": lambda: torch.compile(blocks(3, 4), backend="eager"),  # type: ignore[dict-item,return-value]
    "compiled method": CompiledForward,
    "data parallel": lambda: nn.DataParallel(blocks(3, 4)),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(blocks(3, 4)),
}


@pytest.mark.parametrize("inputs", [(), (X,)], ids=["traced", "exported"])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_wrapped(name: str, inputs: tuple[Any, ...], randomised: Any, difference: Any) -> None:
    module = randomised(nn.Sequential(PARTS[name](), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)))
    model, report = convbn.fuse(module, *inputs)
    assert (report.batchnorm.before, report.batchnorm.after) == (2, 0)
    assert type(model[0]) is type(module[0])
    assert difference(module, model, X) < 2e-6
    convbn.fuse(module, *inputs, inplace=True)
    assert difference(module, model, X) == 0


class Frozen(nn.Module):
    """A BatchNorm of somebody's own, which is recognised by a trial of its forward."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(4) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


def test_trials_do_not_depend_on_the_device_by_default(difference: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), Frozen()).eval()
    with torch.device("meta"):
        model, report = convbn.fuse(module, X)
    assert (report.batchnorm.before, report.batchnorm.after) == (1, 0)
    assert difference(module, model, X) < 2e-6
