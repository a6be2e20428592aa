"""What stands between a convolution and a BatchNorm: folded where it is proven, equal always, in every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import nn

from convbn.fuse.refusal import Reason

X = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)
FORMS = ("traced", "module", "program")

Function = Callable[[Any], Any]


class Between(nn.Module):
    """``norm(between(conv(x)))``; the assertion tells the rank to whoever traces it."""

    def __init__(self, between, channels=6, rank=4, asserts=True):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(channels) if rank == 4 else nn.BatchNorm1d(channels)
        self.between, self.asserts = between, asserts

    def forward(self, x):
        if self.asserts:
            torch._assert(x.ndim == 4, "a batch of images")
        return self.norm(self.between(self.conv(x)))


@pytest.fixture
def folded(fold, fold_program, difference):
    """A model in one of the forms, folded; the outputs are compared in any case."""

    def run(model, form, x=X, lowered=False):
        if form == "program":
            program = torch.export.export(model, (x,), strict=False)
            outcome = fold_program(program.run_decompositions({}) if lowered else program)
            assert difference(model, outcome.model.module(), x) < 2e-6
        else:
            outcome = fold(model) if form == "traced" else fold(model, x)
            assert difference(model, outcome.model, x) < 2e-6
        return outcome

    return run


def halves(split: Function) -> Function:
    """The pieces in another order."""

    def swapped(y):
        first, second = split(y)
        return torch.cat((second, first), 1)

    return swapped


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("between", "channels", "rank"),
    [
        (lambda y: F.pad(y, (-1, -1)), 6, 4),
        (lambda y: F.avg_pool2d(y, 2), 6, 4),
        (lambda y: y.mean((2, 3)), 6, 2),
        (lambda y: y.mean(axis=-1), 6, 2),
        (lambda y: y.mean((-1, 2), keepdim=True), 6, 4),
        (lambda y: y.mean((2, 3)).unsqueeze(-1).unsqueeze(2), 6, 4),
        (lambda y: y.narrow(1, 2, 3), 3, 4),
        (lambda y: y.narrow(1, -4, 3), 3, 4),
        (lambda y: y.narrow(0, 0, 1), 6, 4),
        (lambda y: y.permute(0, 1, 3, 2), 6, 4),
        (lambda y: torch.permute(y, (0, 1, 3, 2)), 6, 4),
        (lambda y: y.transpose(2, -1), 6, 4),
        (lambda y: torch.swapaxes(y, axis0=-1, axis1=2), 6, 4),
        (lambda y: F.pixel_shuffle(y.narrow(1, 2, 4), 2), 1, 4),
        (lambda y: F.pixel_shuffle(y.narrow(1, 2, 4), upscale_factor=2).narrow(1, -1, 1), 1, 4),
    ],
    ids=[
        "pad",
        "pool",
        "mean",
        "mean-1",
        "keepdim",
        "unsqueeze",
        "narrow",
        "from-behind",
        "batch",
        "permute",
        "permute-list",
        "transpose",
        "swapaxes",
        "pixel-shuffle",
        "piece-of-a-shuffle",
    ],
)
def test_passed_in_every_form(form, between, channels, rank, randomised, folded):
    outcome = folded(randomised(Between(between, channels, rank)), form)
    assert outcome.folded == {"norm": "conv"}


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize(
    ("between", "channels", "rank"),
    [
        (lambda y: y[:, ::2], 3, 4),
        (lambda y: y[..., 1:, ::3], 6, 4),
        (lambda y: y[:, :, -1], 6, 2),
        (lambda y: y.select(2, 0), 6, 2),
        (lambda y: y.flip(1, -1), 6, 4),
        (lambda y: F.pixel_shuffle(y[:, 2:], 2), 1, 4),
    ],
    ids=["steps", "two-axes", "index", "select", "flip", "pixel-shuffle"],
)
def test_passed_where_the_calls_are_recorded(form, between, channels, rank, randomised, folded):
    outcome = folded(randomised(Between(between, channels, rank)), form)
    assert outcome.folded == {"norm": "conv"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("between", "channels", "rank"),
    [
        (lambda y: torch.add(y, 1, alpha=2), 6, 4),
        (lambda y: torch.div(y, 0.5, rounding_mode="floor"), 6, 4),
        (lambda y: y * True, 6, 4),
        (lambda y: F.pad(y, (1, 1), value=2.0), 6, 4),
        (lambda y: F.avg_pool2d(y, 2, divisor_override=3), 6, 4),
        (lambda y: y.mean((2, 3), dtype=torch.float32), 6, 2),
        (lambda y: y.amax((2, 3)), 6, 2),
        (lambda y: y.amax(1, keepdim=True), 1, 4),
        (lambda y: y.amax((1,), keepdim=True), 1, 4),
    ],
    ids=[
        "alpha",
        "floor",
        "bool",
        "value",
        "divisor",
        "dtype",
        "amax-drops",
        "amax-number",
        "amax-channels",
    ],
)
def test_passed_in_no_form(form, between, channels, rank, randomised, folded):
    outcome = folded(randomised(Between(between, channels, rank)), form)
    assert outcome.kept == {"norm": Reason.PRODUCER_NOT_LINEAR}


@pytest.mark.parametrize(
    ("between", "channels", "rank"),
    [
        (lambda y: F.pad(y, (-1, -1, -1, 1 - y.dim() + 2)), 6, 4),
        (lambda y: F.avg_pool2d(y, 2, y.dim() - 2), 6, 4),
        (lambda y: F.avg_pool2d(y, y.shape[-1]), 6, 4),
        (lambda y: F.adaptive_avg_pool2d(y, (1, y.dim())).squeeze(2), 6, 2),
        (lambda y: y.mean((2, y.dim() - 1)), 6, 2),
        (lambda y: y.chunk(2, 1)[1], 3, 4),
        (lambda y: y.split(3, y.dim() - 3)[1], 3, 4),
        (lambda y: y.narrow(1, 1, y.shape[0]), 2, 4),
        (lambda y: y.permute((0, 1, 3, y.dim() - 2)), 6, 4),
        (lambda y: y.permute(0, 1, 3, y.dim() - 2), 6, 4),
        (lambda y: y.transpose(2, y.dim() - 1), 6, 4),
        (lambda y: y.flatten(2, y.dim() - 1), 6, 2),
        (lambda y: y.flatten(y.dim() - 2), 6, 2),
        (lambda y: y.flatten(2).unsqueeze(y.dim() - 1), 6, 4),
        (lambda y: y * y.shape[0], 6, 4),
        (lambda y: F.pixel_shuffle(y.narrow(1, 0, 4), y.dim() - 2), 1, 4),
    ],
    ids=[
        "pad",
        "stride",
        "kernel",
        "adaptive",
        "mean",
        "chunk",
        "split",
        "narrow",
        "permute",
        "permute-one-by-one",
        "transpose",
        "flatten",
        "flatten-from",
        "unsqueeze",
        "product",
        "block",
    ],
)
def test_numbers_that_only_a_run_knows(between, channels, rank, randomised, folded):
    model = randomised(Between(between, channels, rank))
    assert set(folded(model, "traced").kept) == {"norm"}
    assert folded(model, "module").folded == {"norm": "conv"}
    assert folded(model, "program").folded == {"norm": "conv"}


@pytest.mark.parametrize(
    ("between", "rank"),
    [
        (lambda y: F.pad(y, (-1, -1)), 4),
        (lambda y: y.mean((2, 3)), 2),
        (lambda y: y.transpose(2, 3), 4),
    ],
    ids=["pad", "mean", "transpose"],
)
def test_ranks_that_nothing_proves(between, rank, randomised, folded):
    model = randomised(Between(between, rank=rank, asserts=False))
    assert folded(model, "traced").kept == {"norm": Reason.PRODUCER_NOT_LINEAR}
    assert folded(model, "module").folded == {"norm": "conv"}


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_borders_that_are_no_zeros(mode, lowered, randomised, folded):
    model = randomised(Between(lambda y: F.pad(y, (1, 2, 0, 1), mode=mode)))
    assert folded(model, "program", lowered=lowered).folded == {"norm": "conv"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "split",
    [
        lambda y: y.split(3, 1),
        lambda y: torch.split(y, [2, 4], dim=1),
        lambda y: torch.chunk(y, chunks=2, dim=1),
    ],
    ids=["split", "sizes", "chunk"],
)
def test_pieces_in_another_order(form, split, request, randomised, folded):
    """Each piece is the other half of the channels, and asks the convolution for its own part of the map."""
    # Of unequal pieces a trace knows no size.
    known = "sizes-traced" not in request.node.name
    assert folded(randomised(Between(halves(split))), form).folded == ({"norm": "conv"} if known else {})


@pytest.mark.parametrize("form", FORMS)
def test_a_piece_each_is_normalised(form, randomised, folded):
    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norms = nn.Conv2d(4, 6, 1), nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

        def forward(self, x):
            torch._assert(x.ndim == 4, "a batch of images")
            first, second = self.conv(x).chunk(2, 1)
            return self.norms[0](first) * self.norms[1](second).sigmoid()

    assert folded(randomised(Pieces()), form).folded == {"norms.0": "conv", "norms.1": "conv"}


class Regrouped(nn.Module):
    """A BatchNorm in front of blocks that become channels, of which a layer reads a piece from behind."""

    def __init__(self, image=True):
        super().__init__()
        self.norm, self.head, self.image = nn.BatchNorm2d(3), nn.Conv2d(5, 2, 1), image

    def forward(self, x):
        torch._assert(x.ndim == 4, "a batch of images")
        y = self.norm(x.sigmoid().narrow(1, 0, 3))
        y = F.pixel_unshuffle(y, 2) if self.image else F.pixel_unshuffle(y[0], 2).unsqueeze(0)
        return self.head(y.narrow(1, -6, 5))


@pytest.mark.parametrize("form", FORMS)
def test_blocks_that_become_channels(form, randomised, folded):
    """In front of a piece that is counted from behind: how many channels there are must follow from the blocks."""
    assert folded(randomised(Regrouped()), form).folded == {"norm": "head"}


@pytest.mark.parametrize("form", FORMS[1:])
def test_blocks_of_an_image_without_a_batch(form, randomised, folded):
    assert set(folded(randomised(Regrouped(image=False)), form).kept) == {"norm"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)], ids=str)
def test_an_image_without_a_batch(form, pool, randomised, folded):
    """Axis 1 of a single image is no channel axis: neither pool may hand a map over it on."""

    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm1d(3)
            self.pool = pool

        def forward(self, x):
            return self.norm(self.pool(self.conv(x)))

    model = randomised(Single())
    model.norm.weight.data.abs_()
    # Without inputs nothing says that there is no batch; and then axis 1 is not proven to be the channels.
    reason = Reason.AXIS_NOT_PROVEN if form == "traced" else Reason.PRODUCER_NOT_LINEAR
    assert folded(model, form, X[0]).kept == {"norm": reason}


@pytest.mark.parametrize("form", FORMS)
def test_swapped_axes_of_an_image_without_a_batch(form, randomised, folded):
    """As many rows as channels: only the axes say which of them the BatchNorm normalises."""

    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(torch.swapaxes(self.conv(x), 1, 2))

    assert set(folded(randomised(Swapped()), form, torch.rand(4, 5, 6)).kept) == {"norm"}


class Scaled(nn.Module):
    """A tensor of rank 0, in the shapes that code gives it."""

    def __init__(self, seen):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.gain, self.seen = nn.Parameter(torch.tensor(1.5)), seen

    def forward(self, x):
        return self.norm(self.conv(x) * self.seen(self.gain))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "seen",
    [
        lambda g: g.unsqueeze(0),
        lambda g: g.flatten(),
        lambda g: g.mean(0),
        lambda g: g.amax((0,), keepdim=True),
        lambda g: g.transpose(0, 0),
        lambda g: g.view(1, 1),
    ],
    ids=["unsqueeze", "flatten", "mean", "amax", "transpose", "view"],
)
def test_a_tensor_of_rank_0(form, seen, randomised, folded):
    outcome = folded(randomised(Scaled(seen)), form)
    assert form != "program" or outcome.folded == {"norm": "conv"}
