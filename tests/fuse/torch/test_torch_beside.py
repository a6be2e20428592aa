"""The BatchNorm of an identity branch, in a module: into the convolution beside it, where that has a tap for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import convbn
from convbn.fuse.options import FuseOptions

X = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """``code`` of a convolution and a BatchNorm over the same data, behind an activation."""

    def __init__(self, code: Any, **convolution: Any) -> None:
        super().__init__()
        given = {"kernel_size": 3, "padding": 1, "bias": False} | convolution
        self.conv, self.norm, self.code = nn.Conv2d(8, 8, **given), nn.BatchNorm2d(8), code

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.silu(x)
        return torch.sigmoid(self.code(self, x))


SUMS: dict[str, Any] = {
    "sum": lambda m, x: m.conv(x) + m.norm(x),
    "the other way round": lambda m, x: m.norm(x) + m.conv(x),
    "difference": lambda m, x: m.conv(x) - m.norm(x),
    "taken off": lambda m, x: m.norm(x) - m.conv(x),
    "with a number": lambda m, x: (1 - m.norm(x)) + 2 + m.conv(x),
    "with another summand": lambda m, x: m.conv(x) + (x.tanh() - m.norm(x)),
    "in place": lambda m, x: m.conv(x).add_(m.norm(x)),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_identity_is_left(name: str, randomised: Any) -> None:
    module = randomised(Branches(SUMS[name]))
    model, report = convbn.fuse(module, X)
    assert [(one.name, one.into, one.rule) for one in report.folded] == [
        ("norm", ("conv",), "batchnorm-beside")
    ]
    assert type(model.norm) is nn.Identity
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"groups": 2},
        {"groups": 8},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": (1, 5), "padding": (0, 2)},
        {"padding": 2, "dilation": 2},
        {"padding": "same"},
        {"bias": True},
    ],
    ids=str,
)
def test_into_every_convolution_with_a_tap_over_its_own_place(given: Any, randomised: Any) -> None:
    module = randomised(Branches(SUMS["sum"], **given))
    model, report = convbn.fuse(module, X)
    assert report.batchnorm.after == 0
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-5)


OTHERWISE: dict[str, tuple[Any, Any]] = {
    "an even kernel": (lambda m, x: m.conv(x) + m.norm(x)[:, :, :8, :8], {"kernel_size": 2, "padding": 0}),
    "no padding": (lambda m, x: m.conv(x) + m.norm(x)[:, :, 1:-1, 1:-1], {"padding": 0}),
    "a stride": (lambda m, x: m.conv(x).mean() + m.norm(x), {"stride": 2}),
    "other borders": (SUMS["sum"], {"padding_mode": "reflect"}),
    "other data": (lambda m, x: m.conv(x.tanh()) + m.norm(x), {}),
    "read by others": (lambda m, x: m.conv(x) + (y := m.norm(x)) + y.abs(), {}),
    "a product": (lambda m, x: m.conv(x) * m.norm(x), {}),
    "twice": (lambda m, x: m.conv(x) + (y := m.norm(x)) + y, {}),
    "what it is written into": (lambda m, x: m.norm(x).add_(m.conv(x)) + x, {}),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_it_stays_where_it_cannot_be_left(name: str, randomised: Any) -> None:
    code, given = OTHERWISE[name]
    module = randomised(Branches(code, **given))
    before = module(X)
    model, report = convbn.fuse(module, X, options=FuseOptions(verify=False))
    assert report.batchnorm.after == 1
    torch.testing.assert_close(model(X), before)


def test_data_much_larger_than_the_result(randomised: Any) -> None:
    module = randomised(Branches(SUMS["sum"]))
    with torch.no_grad():
        module.norm.running_var.fill_(1e8)
    assert convbn.fuse(module, X, options=FuseOptions(verify=False)).report.batchnorm.after == 1


def test_it_can_be_switched_off(randomised: Any) -> None:
    module = randomised(Branches(SUMS["sum"]))
    options = FuseOptions(skip=("batchnorm-beside",), verify=False)
    assert convbn.fuse(module, X, options=options).report.batchnorm.after == 1


def test_a_layer_that_two_batchnorms_go_into_is_not_judged_by_one_of_them(randomised: Any) -> None:
    """The first one's own layer takes in signs and shifts of the second one's as well."""

    class Block(Branches):
        def __init__(self) -> None:
            super().__init__(SUMS["sum"])
            self.conv = nn.Sequential(self.conv, nn.BatchNorm2d(8))

    module = randomised(nn.Sequential(Block(), Block(), nn.Conv2d(8, 2, 1)))
    _, report = convbn.fuse(module, X)
    assert report.batchnorm.after == 0
