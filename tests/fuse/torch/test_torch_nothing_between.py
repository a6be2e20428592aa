"""Operators between a layer and its BatchNorm that change no number or only its place, and layers of other kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import convbn
from convbn.fuse.fold import fold

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    def __init__(self, between: Any) -> None:
        super().__init__()
        self.conv, self.between, self.norm = nn.Conv2d(3, 8, 3), between, nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(self.between(self, self.conv(x))))


#: What stands between, and whether it is understood without example inputs.
BETWEEN: dict[str, tuple[Any, bool]] = {
    "float": (lambda m, y: y.float(), True),
    "to float": (lambda m, y: y.to(torch.float32), True),
    "to the weight's type": (lambda m, y: y.to(m.conv.weight.dtype), True),
    "to its own type": (lambda m, y: y.to(y.dtype), False),
    "to a device": (lambda m, y: y.to("cpu"), True),
    "to both": (lambda m, y: y.to("cpu", torch.float32), True),
    "to by name": (lambda m, y: y.to(dtype=torch.float32, copy=True), True),
    "cpu": (lambda m, y: y.cpu(), True),
    "type_as": (lambda m, y: y.type_as(m.conv.weight), True),
    "double and back": (lambda m, y: y.double().float(), True),
    "movedim": (lambda m, y: y.movedim(1, -1).movedim((3,), (1,)), False),
    "mT": (lambda m, y: y.mT, False),
    "swapdims": (lambda m, y: y.swapdims(2, 3), False),
    "positive": (lambda m, y: +y, True),
    "roll": (lambda m, y: torch.roll(y, 1, 2), True),
    "expand": (lambda m, y: y[:, :, :1].expand(-1, -1, 6, -1), False),
    "repeat": (lambda m, y: y.repeat(1, 1, 2, 1), False),
    "tile": (lambda m, y: y.tile(1, 1, 2, 1), False),
    "stack": (lambda m, y: torch.stack([y], 2).flatten(2, 3), False),
    "hstack": (lambda m, y: torch.hstack([y]), True),
    "unbind": (lambda m, y: y[None].unbind(0)[0], False),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_in_every_form(name: str, randomised: Any) -> None:
    between, traced = BETWEEN[name]
    module = randomised(Between(between))
    for model, inputs in ((module, (X,)), (torch.export.export(module, (X,), strict=False), ())):
        assert convbn.fuse(model, *inputs).report.batchnorm.after == 0
    model, report = convbn.fuse(module)
    assert report.batchnorm.after == (0 if traced else 1)
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wanted", [torch.int32, torch.int64, torch.bool])
def test_no_map_passes_integers(wanted: torch.dtype, randomised: Any) -> None:
    module = randomised(Between(lambda m, y: (3 * y).to(wanted).to(torch.float32)))
    for inputs in ((), (X,)):
        folding = fold(module, inputs or None)
        assert folding.report.batchnorm.after == 1
        torch.testing.assert_close(folding.model(X), module(X))


def test_the_type_of_an_input_is_not_known_without_one(randomised: Any) -> None:
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.norm((4 * self.conv(x.float())).to(x.dtype).float())
            return y

    module, whole = randomised(Rounds()), (4 * X).to(torch.int32)
    model, _ = convbn.fuse(module)
    torch.testing.assert_close(model(whole), module(whole), atol=1e-5, rtol=1e-4)
    assert convbn.fuse(module, whole).report.batchnorm.after == 1
    assert convbn.fuse(module, X).report.batchnorm.after == 0


def test_a_half_precision_convolution(randomised: Any) -> None:
    module = randomised(Between(lambda m, y: y.float()))
    module.conv.half()
    model, report = convbn.fuse(module, X.half())
    assert report.batchnorm.after == 0
    assert model.conv.weight.dtype == torch.float16


@pytest.mark.parametrize("form", ["exported", "traced", "program"])
@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(8, affine=True),
        nn.InstanceNorm2d(8, track_running_stats=True),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 8),
    ],
    ids=str,
)
def test_behind_another_normalisation(norm: nn.Module, form: str, randomised: Any) -> None:
    module = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.BatchNorm2d(8), nn.SiLU()))
    given = {"exported": (module, X), "traced": (module,)}.get(form)
    _, report = convbn.fuse(*(given or (torch.export.export(module, (X,), strict=False),)))
    # With running statistics an InstanceNorm is a BatchNorm in inference.
    assert (
        (report.batchnorm.before, report.batchnorm.after) == (1 + (norm.running_mean is not None), 0)
        if hasattr(norm, "running_mean")
        else (1, 0)
    )


@pytest.mark.parametrize("last", [nn.LayerNorm(8, bias=False), nn.LayerNorm(8)], ids=str)
def test_a_layernorm_takes_the_bias_that_it_lacks(last: nn.Module, randomised: Any) -> None:
    module = randomised(nn.Sequential(nn.Linear(5, 8), last, nn.BatchNorm1d(8), nn.Tanh()))
    model, report = convbn.fuse(module, torch.randn(4, 5))
    assert report.batchnorm.after == 0
    assert model[1].bias is not None


def test_an_embedding_takes_scale_and_shift(randomised: Any) -> None:
    module = randomised(nn.Sequential(nn.Embedding(20, 8), nn.BatchNorm1d(8), nn.Tanh()))
    words = torch.arange(10)
    for model, inputs in ((module, (words,)), (torch.export.export(module, (words,), strict=False), ())):
        folded, report = convbn.fuse(model, *inputs)
        assert report.batchnorm.after == 0
        assert sum(t.numel() for t in folded.state_dict().values() if t.ndim == 2) == 160 if inputs else True


def test_a_table_that_is_also_a_weight_stays(randomised: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(20, 8), nn.BatchNorm1d(8)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return functional.linear(torch.tanh(self.norm(self.table(words))), self.table.weight)

    module = randomised(Tied())
    assert convbn.fuse(module, torch.arange(10)).report.batchnorm.after == 1


@pytest.mark.parametrize(
    "act",
    [
        lambda y: y.clamp(min=0),
        lambda y: torch.clamp_min(y, 0),
        lambda y: -(-y).clip(None, 0),
        lambda y: functional.threshold(y, 0, 0),
    ],
)
def test_a_clamp_at_zero_lets_a_positive_scale_through(act: Any, randomised: Any) -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
            self.other = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z: torch.Tensor = self.last(act(self.norm(y * y)))
            return z

    module = randomised(Clamped())
    with torch.no_grad():
        module.norm.weight.abs_()
        module.norm.bias.zero_()
        module.norm.running_mean.zero_()
    for model, inputs in ((module, (X,)), (torch.export.export(module, (X,), strict=False), ())):
        assert convbn.fuse(model, *inputs).report.batchnorm.after == 0
