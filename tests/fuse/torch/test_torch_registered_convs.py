"""docs/torch.md, "Convolutions of other classes": operators and layers that only their owner knows take BatchNorms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import convbn
from convbn.errors import UsageError
from convbn.fuse.frontends.torch.modules import registered_convs
from convbn.fuse.operators import registry
from convbn.fuse.refusal import Reason

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
POINTS = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))


# [example]
@torch.library.custom_op("example::shifted_conv", mutates_args=())
def shifted_conv(
    x: torch.Tensor, offset: torch.Tensor, kernel: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """A deformable convolution of one tap: every place reads its neighbour at an offset."""
    moved = torch.roll(x, (int(offset[0]), int(offset[1])), (2, 3))
    return torch.einsum("nchw,co->nohw", moved.sin(), kernel) + shift[:, None, None]


@shifted_conv.register_fake
def _(x: torch.Tensor, offset: torch.Tensor, kernel: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], kernel.shape[1], *x.shape[2:])


def tell() -> None:
    convbn.register_conv(shifted_conv, weight="kernel", bias="shift", output_axis=1)


# [/example]


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registered_convs, "_CLASSES", {})
    yield
    for operator in registered_convs._OPERATORS.values():
        registry.unregister(operator)
    registered_convs._OPERATORS.clear()


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
        self.register_buffer("offset", torch.tensor([1, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return shifted_conv(x, self.offset, self.kernel, self.shift)


class Sparse(nn.Module):
    """A convolution over points: ``[K, I, O]``, with a bias only where it was asked for."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(2, 3, 4))
        self.shift = nn.Parameter(torch.randn(4)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sparse_conv(x, self.kernel, self.shift)


@torch.library.custom_op("example::sparse_conv", mutates_args=())
def sparse_conv(x: torch.Tensor, kernel: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    y = torch.einsum("ni,kio->no", x, kernel)
    return y if shift is None else y + shift


@sparse_conv.register_fake
def _(x: torch.Tensor, kernel: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(x.shape[0], kernel.shape[2])


def of_images() -> nn.Module:
    return nn.Sequential(Shifted(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize(
    "kind", [shifted_conv, torch.ops.example.shifted_conv, "example::shifted_conv"], ids=str
)
def test_an_operator_in_modules_and_programs(
    kind: Any, randomised: Any, fold: Any, fold_program: Any, difference: Any
) -> None:
    model = randomised(of_images())
    assert set(fold(model, X).kept.values()) == {Reason.PRODUCER_NOT_LINEAR}
    tell() if kind is shifted_conv else convbn.register_conv(
        kind, weight="kernel", bias="shift", output_axis=1
    )
    folded = fold(model, X)
    assert folded.folded == {"1": "0"}
    assert difference(model, folded.model, X) < 2e-6
    program = torch.export.export(model, (X,))
    graph = fold_program(program)
    assert not graph.kept
    assert difference(model, graph.model.module(), X) < 2e-6
    assert convbn.fuse(model, X).report.verify["status"] == "equal"


@pytest.mark.parametrize("bias", [True, False])
def test_a_class(bias: bool, randomised: Any, fold: Any, difference: Any, tmp_path: Any) -> None:
    model = randomised(nn.Sequential(Sparse(bias), nn.BatchNorm1d(4)))
    convbn.register_conv(Sparse, weight="kernel", bias="shift", output_axis=-1, channel_axis=-1)
    outcome = fold(model, POINTS)
    assert outcome.folded == {"1": "0"}
    assert outcome.model[0].shift is not None
    assert difference(model, outcome.model, POINTS) < 2e-6
    convbn.save_fused(model, convbn.fuse(model, POINTS), tmp_path / "a.safetensors")
    loaded = convbn.load_fused(tmp_path / "a.safetensors", model)
    assert difference(outcome.model, loaded, POINTS) == 0


class Deformable(nn.Module):
    """Of an image and offsets, in a forward that only runs on tensors."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 4))
        self.shift = nn.Parameter(torch.randn(4)) if bias else None

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        if float(offset.abs().max()) < 1e9:
            x = x + offset
        y = torch.einsum("nchw,co->nohw", x, self.kernel)
        return y if self.shift is None else y + self.shift[:, None, None]


class Network(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.offset, self.conv, self.norm = nn.Conv2d(3, 3, 1), conv, nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x, self.offset(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("bias", [True, False])
def test_a_class_whose_forward_cannot_be_traced(
    bias: bool, randomised: Any, fold: Any, difference: Any
) -> None:
    model = randomised(Network(Deformable(bias)))
    convbn.register_conv(Deformable, weight="kernel", bias="shift", output_axis=1)
    outcome = fold(model)
    assert outcome.folded == {"norm": "conv"}
    assert difference(model, outcome.model, X) < 2e-6


def test_a_subclass_with_another_forward_is_not_trusted(randomised: Any, fold: Any) -> None:
    class Other(Sparse):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    convbn.register_conv(Sparse, weight="kernel", bias="shift", output_axis=-1, channel_axis=-1)
    assert fold(randomised(nn.Sequential(Other(), nn.BatchNorm1d(4))), POINTS).kept


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"bias": None}, Reason.NO_BIAS),
        ({"output_axis": 0}, Reason.PARAMETERS_MALFORMED),
        ({"output_axis": 7}, Reason.PARAMETERS_MALFORMED),
        ({"channel_axis": 2}, Reason.AXIS_NOT_PROVEN),
    ],
    ids=str,
)
def test_what_it_was_told_is_held_to(
    told: dict[str, Any], reason: Reason, randomised: Any, fold: Any, fold_program: Any
) -> None:
    given = {"weight": "kernel", "bias": "shift", "output_axis": 1} | told
    convbn.register_conv(shifted_conv, **given)
    convbn.register_conv(shifted_conv, **given)  # told again, it is known once
    model = randomised(nn.Sequential(Shifted(), nn.BatchNorm2d(4)))
    assert fold(model, X).kept == {"1": reason}
    assert fold_program(torch.export.export(model, (X,))).kept == {"1": reason}


@pytest.mark.parametrize("kind", [3, dict, "example", "example::none", Sparse], ids=str)
def test_what_is_no_convolution(kind: Any) -> None:
    if kind is Sparse:
        with pytest.raises(UsageError, match="no argument 'gain'"):
            convbn.register_conv(sparse_conv, weight="gain")
    else:
        with pytest.raises(UsageError, match="neither a class of modules"):
            convbn.register_conv(kind)
