"""Programs whose weights are standardised by a BatchNorm over them: the BatchNorm goes, its result is stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import convbn
from convbn.fuse.fold import fold
from convbn.fuse.operators.batch_norm import BatchNorm, evaluated
from convbn.fuse.options import FuseOptions
from convbn.fuse.refusal import Reason
from convbn.fuse.view.dataflow import Constant

_X = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    """Weight standardisation as timm writes it: the output channels of the weight are the BatchNorm's."""

    def standardised(self) -> torch.Tensor:
        rows = self.weight.reshape(1, len(self.weight), -1)
        made = functional.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return made.reshape_as(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.standardised(), self.bias)


def _exported(module: nn.Module) -> Any:
    return torch.export.export(module.eval(), (_X,), strict=False)


def test_what_a_batchnorm_makes_of_a_weight_is_stored() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), Standardised(4, 4, 1, bias=False))
    result = convbn.fuse(_exported(module), (_X,))
    assert (result.report.batchnorm.before, result.report.batchnorm.after) == (2, 0)
    assert {entry.rule for entry in result.report.folded} == {"batchnorm-of-constants"}
    assert not any("batch_norm" in str(node.target) for node in result.model.graph.nodes)
    assert torch.allclose(result.model.module()(_X), module(_X), atol=1e-5)
    assert result.report.verify["status"] == "equal"


def test_a_batchnorm_behind_goes_into_the_stored_weight(randomised: Any) -> None:
    module = randomised(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)))
    result = convbn.fuse(_exported(module), (_X,))
    assert result.report.batchnorm.after == 0
    assert torch.allclose(result.model.module()(_X), module(_X), atol=1e-5)


def test_one_that_is_also_an_output_or_switched_off_stays() -> None:
    class Shown(Standardised):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), self.standardised()

    assert fold(
        _exported(Standardised(3, 4, 3)), options=FuseOptions(skip=("batchnorm-of-constants",))
    ).report.kept
    kept = fold(_exported(Shown(3, 4, 3))).report.kept
    assert Reason.OBSERVED in {entry.reason for entry in kept}


@pytest.mark.parametrize("training", [False, True])
def test_statistics_may_be_absent_where_the_batch_gives_them(training: bool) -> None:
    data = Constant.of(torch.arange(12.0).reshape(1, 3, 4).numpy())
    found = evaluated(BatchNorm(0.0, training=training), [data, None, None, None, None])
    assert (found is not None) is training
    assert evaluated(BatchNorm(0.0, training=True, channel_axis=3), [data, None, None]) is None
    if found is not None:
        assert abs(found[1]().mean(axis=2)).max() < 1e-12
