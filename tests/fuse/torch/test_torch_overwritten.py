"""An activation in place behind a BatchNorm: by which name the forward goes on decides whether it may give that up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from convbn.fuse.refusal import Reason

X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.head, self.other = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)


class ByResult(Net):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv(x)
        y = self.act(self.norm(h))
        return self.head(y), self.other(h)


class ByFirstName(Net):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv(x)
        y = self.norm(h)
        self.act(y)
        return self.head(y), self.other(h)


class ByView(Net):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv(x)
        y = self.norm(h)
        rows = y.flatten(2)
        z = self.act(y)
        return self.head(z), rows, self.other(h)


class Unread(Net):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv(x)
        self.norm(h)
        self.act(h)
        return h


class BehindItsBack(Net):
    """The activation writes to what the BatchNorm has read, and what it gave is read after that."""

    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv(x)
        y = self.norm(h)
        self.act(h)
        return self.head(y), self.other(h)


class ReadBefore(Net):
    """Likewise, but what it gave is not read after that."""

    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv(x)
        y = self.head(self.norm(h))
        return y, self.other(self.act(h))


class Untraceable(Net):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.conv(x)
        y = self.act(self.norm(h))
        return (self.head(y), self.other(h)) if x.shape[0] > 1 else h


@pytest.mark.parametrize("given", [(), (X,)], ids=["traced", "exported"])
@pytest.mark.parametrize("kind", [ByResult, ByFirstName, ByView, Unread, BehindItsBack, ReadBefore])
def test_what_is_written_in_place_is_read_as_before(
    kind: type[Net],
    given: tuple[Any, ...],
    randomised: Callable[..., Any],
    fold: Callable[..., Any],
    difference: Callable[..., float],
) -> None:
    model = randomised(kind())
    assert difference(model, fold(model, *given).model, X) < 1e-5


@pytest.mark.parametrize("given", [(), (X,)], ids=["traced", "exported"])
def test_it_gives_that_up_where_its_result_is_read(
    given: tuple[Any, ...], randomised: Callable[..., Any], fold: Callable[..., Any]
) -> None:
    outcome = fold(randomised(ByResult()), *given)
    assert outcome.folded
    assert not outcome.model.act.inplace


@pytest.mark.parametrize("given", [(), (X,)], ids=["traced", "exported"])
@pytest.mark.parametrize("kind", [ByFirstName, ByView])
def test_the_batchnorm_stays_where_another_name_is_read(
    kind: type[Net], given: tuple[Any, ...], randomised: Callable[..., Any], fold: Callable[..., Any]
) -> None:
    outcome = fold(randomised(kind()), *given)
    assert outcome.kept == {"norm": Reason.SEVERAL_READERS}
    assert outcome.model.act.inplace


def test_it_stays_where_the_names_cannot_be_told(
    randomised: Callable[..., Any], fold: Callable[..., Any], difference: Callable[..., float]
) -> None:
    """torch.export takes this way through the forward, symbolic tracing cannot."""
    model = randomised(Untraceable())
    outcome = fold(model, X)
    assert outcome.kept == {"norm": Reason.SEVERAL_READERS}
    assert difference(model, outcome.model, X) < 1e-5


@pytest.mark.parametrize("given", [(), (X,)], ids=["traced", "exported"])
def test_what_is_written_by_its_own_name(
    given: tuple[Any, ...], randomised: Callable[..., Any], fold: Callable[..., Any]
) -> None:
    outcome = fold(randomised(BehindItsBack()), *given)
    assert outcome.kept == {"norm": Reason.SEVERAL_READERS}
    outcome = fold(randomised(ReadBefore()), *given)
    assert outcome.model.act.inplace
