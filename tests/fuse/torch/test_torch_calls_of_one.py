"""A layer and its BatchNorm that one forward calls several times: folded once, where all of the calls agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import convbn
from convbn.fuse.fold import fold

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    """``code`` of an encoder that is called as often as it likes."""

    def __init__(self, code: Any, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.act, self.code = act or nn.ReLU(), code
        self.other = nn.Conv2d(3, 8, 3)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.norm(self.conv(x)))
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.code(self, x)
        return y


TOGETHER: dict[str, Any] = {
    "two inputs": lambda m, x: m.encode(x) - m.encode(x.flip(2)),
    "levels": lambda m, x: sum(m.encode(x[:, :, level:]).mean() for level in range(5)) + m.encode(x),
    "one behind the other": lambda m, x: m.encode(m.encode(x)[:, :3]),
    "in place": lambda m, x: m.encode(x).sigmoid_() - m.encode(x.flip(2)),
}


def weights(model: onnx.ModelProto) -> tuple[int, int]:
    stored = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if len(one.dims) == 4]
    return len({np.asarray(one).tobytes() for one in stored}), len(stored)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU()], ids=str)
@pytest.mark.parametrize("name", TOGETHER)
def test_all_calls_as_one(name: str, act: nn.Module, randomised: Any) -> None:
    module = randomised(Shared(TOGETHER[name], act))
    model, report = convbn.fuse(module, X)
    assert report.batchnorm.after == 0
    assert {fold.into for fold in report.folded} == {("conv",)}
    assert type(model.norm) is nn.Identity
    torch.testing.assert_close(model(X), module(X), atol=1e-4, rtol=1e-4)
    program = torch.export.export(module, (X,), strict=False)
    folded = convbn.fuse(program).model
    before, after = (sum(t.numel() for t in one.state_dict.values()) for one in (program, folded))
    assert after <= before
    exported = convbn.export_onnx(module, X)
    different, stored = weights(exported)
    assert different == stored
    assert exported.ByteSize() <= convbn.export_onnx(module, X, fold=False).ByteSize()


def test_without_example_inputs(randomised: Any) -> None:
    module = randomised(Shared(TOGETHER["two inputs"]))
    model, report = convbn.fuse(module)
    assert report.batchnorm.after == 0
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-4)


APART: dict[str, Any] = {
    "without the BatchNorm once": lambda m, x: m.encode(x) + m.conv(x.flip(2)),
    "of the input once": lambda m, x: m.encode(x) + m.norm(m.conv(x) * m.conv(x.flip(2))),
    "its weight read elsewhere": lambda m, x: m.encode(x) + m.encode(x.flip(2)) + m.conv.weight.sum(),
}


@pytest.mark.parametrize("name", APART)
def test_calls_that_do_not_agree_stay_in_a_module(name: str, randomised: Any) -> None:
    module = randomised(Shared(APART[name]))
    before = module(X)
    folding = fold(module, (X,))
    assert folding.report.batchnorm.after == folding.report.batchnorm.before
    torch.testing.assert_close(folding.model(X), before)


def test_a_program_gives_copies_to_calls_that_do_not_agree(randomised: Any) -> None:
    module = randomised(Shared(APART["without the BatchNorm once"]))
    model, report = convbn.fuse(torch.export.export(module, (X,), strict=False))
    assert report.batchnorm.after == 0
    torch.testing.assert_close(model.module()(X), module(X), atol=1e-5, rtol=1e-4)


def test_one_batchnorm_behind_two_layers(randomised: Any) -> None:
    module = randomised(Shared(lambda m, x: m.encode(x) + m.norm(m.other(x)).tanh()))
    model, report = convbn.fuse(module, X)
    assert {fold.into for fold in report.folded} == {("conv",), ("other",)}
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-4)


def test_two_batchnorms_of_one_layer_do_not_agree(randomised: Any) -> None:
    class Two(Shared):
        def __init__(self) -> None:
            super().__init__(None)
            self.second = nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.norm(self.conv(x))) + torch.tanh(self.second(self.conv(x.flip(2))))

    module = randomised(Two())
    assert fold(module, (X,)).report.batchnorm.after == 2


def test_a_hook_on_one_of_them_keeps_all(randomised: Any) -> None:
    module = randomised(Shared(TOGETHER["two inputs"]))
    module.conv.register_forward_hook(lambda *call: None)
    report = fold(module, (X,)).report
    assert report.batchnorm.after == 2
    assert {str(kept.reason) for kept in report.kept} == {"hooked"}


def test_tied_weights_of_two_layers(randomised: Any) -> None:
    class Tied(Shared):
        def __init__(self) -> None:
            super().__init__(None)
            self.conv.bias = nn.Parameter(torch.randn(8))
            self.other.weight, self.other.bias = self.conv.weight, self.conv.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.norm(self.conv(x))) + torch.tanh(self.norm(self.other(x.flip(2))))

    module = randomised(Tied())
    model, report = convbn.fuse(module, X)
    assert report.batchnorm.after == 0
    assert model.conv.weight is model.other.weight
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-4)


def test_a_loop_with_memory(randomised: Any) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1 + 8, 16, 3, padding=1), nn.BatchNorm2d(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            memory = x.new_zeros(x.shape[0], 8, *x.shape[2:])
            for step in range(x.shape[1]):
                gate, new = self.norm(self.conv(torch.cat([x[:, step : step + 1], memory], 1))).chunk(2, 1)
                memory = memory + gate.sigmoid() * new.tanh()
            return memory

    module = randomised(Recurrent())
    model, report = convbn.fuse(module, X)
    assert (report.batchnorm.before, report.batchnorm.after) == (3, 0)
    torch.testing.assert_close(model(X), module(X), atol=1e-4, rtol=1e-4)
