"""Modules as people write them: slices, shared and scripted parts, code that looks into a BatchNorm, own layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import convbn

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, inputs: int, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(inputs, 8, 3), nn.BatchNorm2d(8), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.norm(self.conv(x)))
        return y


class Sliced(nn.Module):
    """A list that is cut in its forward; cutting numbers a ModuleList's parts anew."""

    def __init__(self, act: nn.Module, kind: Any) -> None:
        super().__init__()
        parts = [nn.Conv2d(3, 3, 1), Block(3, act), Block(8, act), nn.Conv2d(8, 4, 1)]
        self.layers = kind(parts) if kind is nn.ModuleList else kind(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x)
        for layer in self.layers[1:-1]:
            x = layer(x)
        y: torch.Tensor = self.layers[-1](x)
        return y


@pytest.mark.parametrize("inputs", [(X,), ()], ids=["exported", "traced"])
@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_a_sliced_list_with_one_activation_under_two_names(randomised: Any, kind: Any, inputs: Any) -> None:
    module = randomised(Sliced(nn.SiLU(), kind))
    model, report = convbn.fuse(module, *inputs)
    assert {folded.name: folded.into for folded in report.folded} == {
        "layers.1.norm": ("layers.1.conv",),
        "layers.2.norm": ("layers.2.conv",),
    }
    torch.testing.assert_close(model(X), module(X), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inputs", [(X,), ()], ids=["exported", "traced"])
def test_around_a_scripted_child(randomised: Any, inputs: Any) -> None:
    module = randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    module.append(torch.jit.script(nn.Hardswish()))  # type: ignore[no-untyped-call]  # torch's own
    model, report = convbn.fuse(module, *inputs)
    assert report.batchnorm.after == 0
    assert isinstance(model[2], torch.jit.ScriptModule)
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-4)


class Reader(Block):
    """Reads something of the BatchNorm beside calling it; a second BatchNorm follows."""

    def __init__(self, read: str) -> None:
        super().__init__(3, nn.Identity())
        self.read = read
        self.last, self.last_norm = nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        value = getattr(self.norm, self.read)
        y = y + (float(value) if isinstance(value, int | float) else value.view(1, -1, 1, 1))
        z: torch.Tensor = self.last_norm(self.last(functional.silu(y)))
        return z


@pytest.mark.parametrize("read", ["running_mean", "bias", "num_features", "eps", "affine"])
@pytest.mark.parametrize("inputs", [(X,), ()], ids=["exported", "traced"])
def test_a_batchnorm_that_other_code_reads_stays(randomised: Any, read: str, inputs: Any) -> None:
    module = randomised(Reader(read))
    model, report = convbn.fuse(module, *inputs)
    assert [kept.name for kept in report.kept] == ["norm"]
    assert [folded.name for folded in report.folded] == ["last_norm"]
    if read != "bias" or inputs:
        assert f"reads its '{read}'" in report.kept[0].detail
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-4)


def test_what_is_read_before_the_forward_does_not_count(randomised: Any) -> None:
    module = randomised(Block(3, nn.ReLU()))
    assert module.norm.num_features == 8
    assert convbn.fuse(module, X).report.batchnorm.after == 0


class OwnLinear(nn.Module):
    """As torch_geometric's: a bias that is registered and None."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class Turned(OwnLinear):
    """Its weight's first axis is not the outputs', so a bias that is put there on trial does not fit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def test_a_layer_of_somebodys_own_gets_its_bias(randomised: Any) -> None:
    module = randomised(nn.Sequential(OwnLinear(12, 5), nn.BatchNorm1d(5)))
    x = X[0, 0]
    model, report = convbn.fuse(module, x)
    assert report.batchnorm.after == 0
    assert model[0].bias is not None
    torch.testing.assert_close(model(x), module(x), atol=1e-4, rtol=1e-4)


def test_a_bias_that_does_not_fit_is_not_tried_again(randomised: Any) -> None:
    module = randomised(nn.Sequential(Turned(5, 12), nn.BatchNorm1d(5)))
    x = X[0, 0]
    model, report = convbn.fuse(module, x)
    assert report.how.startswith("Captured by torch.export")
    torch.testing.assert_close(model(x), module(x), atol=1e-4, rtol=1e-4)


class Frozen(nn.Module):
    """As DETR's: four buffers, the formula in the forward, and an epsilon in the code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, variance = (
            getattr(self, name).reshape(1, -1, 1, 1)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (variance + 3e-4).rsqrt()
        return x * scale + (bias - mean * scale)


class Clamped(Frozen):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).clamp(min=-1)


class Deviation(Frozen):
    """Divides by σ, not by √(σ² + ε)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, variance = (
            getattr(self, name).reshape(1, -1, 1, 1)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-3) * weight + bias


def test_a_frozen_batchnorm_is_recognised_by_what_it_computes() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), Frozen(5), nn.ReLU()).eval()
    assert convbn.inspect(module).batchnorm.before == 1
    model, report = convbn.fuse(module, X)
    assert (report.batchnorm.before, report.batchnorm.after) == (1, 0)
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(X), module(X), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [Clamped, Deviation])
def test_what_computes_something_else_is_none(kind: type[Frozen]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), kind(5)).eval()
    model, report = convbn.fuse(module, X)
    assert report.batchnorm.before == 0
    torch.testing.assert_close(model(X), module(X))


class Options(Block):
    def forward(self, x: torch.Tensor, times: int = 1, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = super().forward(x) * times
        return y if mask is None else y * mask


@pytest.mark.parametrize(
    ("places", "keywords"), [((), {"x": X}), ((X,), {"mask": torch.rand(10, 10)}), ((X, 2), {"mask": None})]
)
def test_a_program_that_was_exported_with_keywords(randomised: Any, places: Any, keywords: Any) -> None:
    program = torch.export.export(randomised(Options(3, nn.ReLU())), places, keywords, strict=False)
    folded, report = convbn.fuse(program)
    assert (report.batchnorm.after, report.verify["status"]) == (0, "equal")
    wanted = program.module()(*places, **keywords)
    torch.testing.assert_close(folded.module()(*places, **keywords), wanted, atol=1e-4, rtol=1e-4)


class Rebuilt(nn.Module):
    """Its copy is built anew, and in training mode, as those of feature extractors can be."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def __deepcopy__(self, memo: dict[int, Any]) -> Rebuilt:
        return Rebuilt(copy.deepcopy(self.body, memo)).train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return y


def test_training_flags_are_those_of_the_original(randomised: Any) -> None:
    module = randomised(Rebuilt(Block(3, nn.ReLU())))
    model, report = convbn.fuse(module, X)
    assert report.batchnorm.after == 0
    assert not any(part.training for part in model.modules())
    torch.testing.assert_close(model(X), module(X), atol=1e-4, rtol=1e-4)


class CastBack(nn.BatchNorm2d):
    """In float32 whatever it is given, as mixed precision has it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.float()).to(input.dtype)


class Cast(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_casts_that_a_batchnorm_takes_back(
    dtype: torch.dtype, randomised: Any, fold: Any, difference: Any
) -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), CastBack(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    x = torch.randn(2, 3, 5, 5).to(dtype)
    for part in (model[0], model[3]):
        part.to(dtype)
    outcome = fold(model, x)
    assert outcome.folded == {"1": "0"}
    assert outcome.model(x).dtype == dtype
    assert difference(model, outcome.model, x) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert convbn.fuse(model, x).report.verify["status"] == "equal"
    model[1] = randomised(Cast(4))
    assert set(fold(nn.Sequential(*model[:2]).eval(), x).kept) == (set() if dtype == torch.float32 else {"1"})


def test_a_batchnorm_whose_call_does_more_stays(randomised: Any, fold: Any, difference: Any) -> None:
    class Doubling(nn.BatchNorm2d):
        def __call__(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().__call__(input)

    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), Doubling(4)))
    x = torch.randn(2, 3, 5, 5)
    outcome = fold(model, x)
    assert set(outcome.kept) == {"1"}
    assert "a __call__ of its own" in outcome.details["1"]
    assert difference(model, outcome.model, x) == 0


def test_layers_that_are_given_their_data_by_its_name(randomised: Any, fold: Any, difference: Any) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(input=self.conv(input=x))  # type: ignore[no-any-return]

    model, x = randomised(Named()), torch.randn(2, 3, 5, 5)
    for inputs in ((), (x,)):
        outcome = fold(model, *inputs)
        assert outcome.folded == {"norm": "conv"}
        assert difference(model, outcome.model, x) < 2e-6


def test_a_state_that_a_class_does_not_give(randomised: Any) -> None:
    class Secret(nn.Sequential):
        def state_dict(self, *given: Any, **named: Any) -> Any:
            raise NotImplementedError("ask the server")

    model = randomised(Secret(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    report = convbn.fuse(model, torch.randn(2, 3, 5, 5)).report
    assert report.batchnorm.after == 0
    assert {key.status for key in report.keys} == {"changed", "gone"}


class OwnTensors(nn.Module):
    """A forward that calls functions on tensors of its own, of a list and of a child."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4))
        self.listed = nn.ParameterList([torch.randn(4, 4, 3, 3), torch.randn(4)])
        self.conv = nn.Conv2d(4, 4, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](functional.conv2d(x, self.weight, self.bias)).relu()
        x = self.norms[1](functional.conv2d(x, *self.listed)).relu()
        return self.norms[2](functional.conv2d(x, self.conv.weight, self.conv.bias, dilation=2))  # type: ignore[no-any-return]


def test_functions_that_are_called_on_tensors_of_other_modules(randomised: Any, difference: Any) -> None:
    model = randomised(OwnTensors())
    folded, report = convbn.fuse(model, X)
    assert {fold.name: fold.into for fold in report.folded} == {
        "norms.0": ("weight",),
        "norms.1": ("listed",),
        "norms.2": ("conv",),
    }
    assert report.verify["status"] == "equal"
    assert difference(model, folded, X) < 2e-6
