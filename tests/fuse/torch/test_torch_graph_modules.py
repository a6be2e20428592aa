"""Graph modules: what ``torch.export`` gives as a module calls ATen's operators itself, and folds like layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.snapshot import snapshot
from torch import nn

import convbn
from convbn.fuse.frontends.torch.materialize.called_layers import with_layers

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Layers(nn.Module):
    """Every kind of layer, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding="same", bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(6, affine=False), nn.BatchNorm1d(5)])
        self.shared = nn.Conv2d(4, 4, 1)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](self.first(x)).relu()
        y = self.shared(self.shared(y))
        y = self.norms[1](self.up(y)).mean((2, 3))
        return self.norms[2](self.head(y))  # type: ignore[no-any-return]


def exported(randomised: Any, **options: Any) -> tuple[nn.Module, Any]:
    module = randomised(Layers())
    return module, torch.export.export(module, (X,), **options).module()


@pytest.mark.parametrize("inputs", [(), (X,)], ids=["traced", "exported"])
def test_what_an_exported_program_gives_as_a_module(
    inputs: tuple[Any, ...], randomised: Any, difference: Any
) -> None:
    module, graph = exported(randomised)
    before, code = snapshot(dict(graph.named_modules())), graph.code
    model, report = convbn.fuse(graph, *inputs)
    wanted = {"norms.0": ("first",), "norms.1": ("up",), "norms.2": ("head",)}
    if not inputs:  # nothing says what rank the data of the head is of
        del wanted["norms.2"]
    assert {fold.name: fold.into for fold in report.folded} == wanted
    assert report.batchnorm.after == 3 - len(wanted)
    assert difference(module, model, X) < 2e-6
    assert report.verify["status"] == ("equal" if inputs else "not run")
    assert (snapshot(dict(graph.named_modules())), graph.code) == (before, code)


def test_other_batches_as_before(randomised: Any, difference: Any) -> None:
    module, graph = exported(randomised, dynamic_shapes=({0: torch.export.Dim("batch")},))
    model, report = convbn.fuse(graph, X)
    assert report.batchnorm.after == 0
    assert difference(module, model, torch.cat([X, X])) < 2e-6


def test_in_place_and_as_a_part(randomised: Any, difference: Any) -> None:
    _, graph = exported(randomised)
    whole = nn.Sequential(graph, nn.Linear(5, 3), nn.BatchNorm1d(3))
    randomised(whole[2])
    wanted = whole(X)
    assert convbn.fuse(whole, X, inplace=True).report.batchnorm.after == 0
    torch.testing.assert_close(whole(X), wanted, atol=1e-5, rtol=1e-4)


def test_it_is_written_like_other_modules(randomised: Any) -> None:
    _, graph = exported(randomised)
    model = convbn.export_onnx(graph, X)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_what_is_no_layer_stays_a_call(randomised: Any) -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.register_buffer("weight", torch.ones(3, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight, bias = self.conv.weight, self.conv.bias
            y = torch.conv2d(x, weight) + torch.conv2d(x, weight, bias)
            return self.norm(torch.conv2d(y, self.weight) + torch.conv2d(y, weight, self.norm.bias))

    graph = torch.export.export(randomised(Others()), (X,)).module()
    made = with_layers(graph)
    assert type(made.norm) is nn.BatchNorm2d
    assert type(made.conv) is nn.Module
    torch.testing.assert_close(made(X), graph(X))
    assert with_layers(made) is made


def test_training_mode_stays(randomised: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    graph = torch.export.export(module, (X,)).module()
    assert type(with_layers(graph).get_submodule("1")) is nn.Module
