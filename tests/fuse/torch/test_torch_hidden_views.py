"""Results that are said to be new and are their input, written to in place: PyTorch's own tracer copies them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import nn

from convbn.fuse.fold import fold

GIVES = {
    "dropout that is not in training": lambda a: F.dropout(a, 0.5, False),
    "dropout that drops nothing": lambda a: F.dropout(a, 0.0, True),
    "dropout of whole channels": lambda a: F.dropout2d(a, 0.5, False),
    "alpha dropout": lambda a: F.alpha_dropout(a, 0.5, False),
    "einsum of one operand": lambda a: torch.einsum("nchw->nchw", a),
    "detach": lambda a: a.detach(),
}


class Written(nn.Module):
    """A BatchNorm's result and what is said to be another tensor; one of them is written to."""

    def __init__(self, gives, *, other: bool) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        nn.init.uniform_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)
        self._gives, self._other = gives, other

    def forward(self, x):
        result = self.bn(self.conv(x))
        given = self._gives(result)
        (given if self._other else result).add_(1.0)
        return result * 2, given


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("gives", GIVES.values(), ids=GIVES)
def test_who_reads_it_later_sees_what_was_written(gives, other: bool) -> None:
    torch.manual_seed(0)
    module, x = Written(gives, other=other).eval(), torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        expected = module(x)
    program = torch.export.export(module, (x,))
    for folded in (fold(program).model.module(), fold(module, (x,)).model):
        with torch.no_grad():
            for want, got in zip(expected, folded(x), strict=True):
                assert (want - got).abs().max() < 1e-5
    assert fold(program).report.kept == ()
