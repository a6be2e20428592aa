"""Rows that PyTorch puts or adds into others by index, as graph networks do, between layers and a BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

TO = torch.tensor([0, 3, 1, 2])
WIDE = TO[:, None].expand(4, 6)
X = torch.linspace(-1, 1, 4 * 5).reshape(4, 5)

Put = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Rows(nn.Module):
    """``norm(put(a(x), b(x)))``; γ > 0 and no shift, so that only what is put where decides."""

    def __init__(self, put: Put) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(5, 6), nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.put = put

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.put(self.a(x), self.b(x))).tanh()


@pytest.fixture
def left(randomised: Any, fold_program: Any, difference: Any) -> Callable[[Put], int]:
    def run(put: Put) -> int:
        model = randomised(Rows(put))
        model.norm.weight.data.abs_()
        model.norm.bias.data.zero_()
        model.norm.running_mean.zero_()
        outcome = fold_program(torch.export.export(model, (X,), strict=False))
        assert difference(model, outcome.model.module(), X) < 2e-6
        return len(outcome.kept)

    return run


@pytest.mark.parametrize(
    "put",
    [
        lambda a, b: a.scatter_add(0, WIDE, b),
        lambda a, b: a.index_add(0, TO, b),
        lambda a, b: a.index_copy(0, TO, b),
        lambda a, b: a.scatter(0, WIDE, b),
        lambda a, b: a.scatter_reduce(0, WIDE, b, "sum"),
        lambda a, b: a.scatter_reduce(0, WIDE, b, "amax"),
        lambda a, b: a.scatter_reduce(0, WIDE, b, "amin"),
    ],
    ids=["scatter_add", "index_add", "index_copy", "scatter", "sum", "amax", "amin"],
)
def test_a_scale_goes_into_both_layers(put: Put, left: Callable[[Put], int]) -> None:
    assert left(put) == 0


@pytest.mark.parametrize(
    "put",
    [
        lambda a, b: a.index_add(0, TO, b, alpha=2),
        lambda a, b: a.scatter(0, WIDE, 0.5) + b,
        lambda a, b: a.scatter_reduce(0, WIDE, b, "prod"),
        lambda a, b: a.scatter_reduce(0, WIDE, b, "mean"),
        lambda a, b: a.scatter_reduce(0, WIDE, b, "sum", include_self=False),
        lambda a, b: a.scatter(0, WIDE, b, reduce="multiply"),
        lambda a, b: a.scatter_add(1, WIDE.clone(), b),
    ],
    ids=["alpha", "value", "prod", "mean", "without-self", "multiply", "along-the-channels"],
)
def test_what_is_something_else_stays(put: Put, left: Callable[[Put], int]) -> None:
    assert left(put) == 1
