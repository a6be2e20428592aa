"""Weights that a module computes at every call: ``--materialize`` makes parameters of them, and then they fold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.headers import edit_header
from support.snapshot import snapshot
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import convbn
from convbn.errors import BadInputError
from convbn.fuse.frontends.torch.materialize.weights import materialize, materialized
from convbn.fuse.options import FuseOptions
from convbn.fuse.refusal import Reason

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

MATERIALIZE = FuseOptions(materialize=True)
X = torch.linspace(-2, 2, 1 * 3 * 9 * 9).reshape(1, 3, 9, 9).sin()


class Standardised(nn.Conv2d):
    """Weight standardisation, as libraries write it."""

    def forward(self, x):
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (deviation + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class Equalised(nn.Module):
    """An equalised learning rate, in a class that is no convolution's."""

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        shape: tuple[int, ...],
        bias: bool = True,
        **settings: Any,
    ):
        super().__init__()
        self.function, self.settings = function, settings
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(5)) if bias else None

    def forward(self, x):
        return self.function(
            x, self.weight * 0.3, bias=None if self.bias is None else self.bias * 2, **self.settings
        )


class Activated(nn.Module):
    """InPlaceABN, in PyTorch's own functions: ``|γ| + ε``, an activation in place, and no BatchNorm of torch.nn."""

    def __init__(
        self, channels: int = 4, activation: Callable[..., torch.Tensor] = functional.leaky_relu, eps=1e-3
    ):
        super().__init__()
        self.eps, self.activation = eps, activation
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        scale = self.weight.abs() + self.eps
        x = functional.batch_norm(x, self.running_mean, self.running_var, scale, self.bias, eps=self.eps)
        return self.activation(x)


class Rectified(nn.BatchNorm2d):
    def forward(self, x):
        return functional.relu(super().forward(x))


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.random_unstructured(layer, "weight", 0.2)
    prune.random_unstructured(layer, "bias", 0.2)
    return layer


def conv() -> nn.Module:
    return nn.Conv2d(3, 4, 3)


def both(layer: nn.Module) -> nn.Module:
    parametrizations.weight_norm(layer)
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


PARAMETRISED = {
    "old weight norm": lambda: weight_norm(conv()),
    "old weight norm of one number": lambda: weight_norm(conv(), dim=None),
    "old spectral norm": lambda: spectral_norm(conv()),
    "pruning": lambda: pruned(conv()),
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "spectral norm": lambda: parametrizations.spectral_norm(conv()),
    "two tensors": lambda: both(conv()),
}
OWN_FORWARDS = {
    "weight standardisation": lambda: Standardised(3, 4, 3, padding=1, bias=False),
    "groups and strides": lambda: Standardised(3, 6, 3, stride=2, groups=3, dilation=2),
    "equalised": lambda: Equalised(functional.conv2d, (5, 3, 3, 3), padding="same"),
    "equalised, transposed": lambda: Equalised(
        functional.conv_transpose2d, (3, 5, 2, 2), stride=2, output_padding=1
    ),
    "equalised, no bias": lambda: Equalised(functional.conv2d, (5, 3, 1, 1), bias=False),
}


def outputs(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("traced", [False, True], ids=["exported", "traced"])
@pytest.mark.parametrize("name", [*PARAMETRISED, *OWN_FORWARDS])
def test_a_computed_weight_folds(
    name: str, traced: bool, randomised: Any, difference: Any, tmp_path: Any
) -> None:
    def build() -> nn.Module:
        torch.manual_seed(1)
        layer = (PARAMETRISED | OWN_FORWARDS)[name]()
        channels = layer.eval()(X).shape[1]
        return randomised(
            nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 2, 1))
        )

    model = build()
    before, held = outputs(model), snapshot(model)
    result = convbn.fuse(model, None if traced else X, options=MATERIALIZE)
    assert result.report.batchnorm.after == 0
    assert "computed weights of 1 modules are parameters now: '0'" in result.report.notes
    assert type(result.model[0]).__module__.startswith("torch.nn.modules")
    assert set(dict(result.model[0].named_parameters())) == {"weight", "bias"}
    assert snapshot(model) == held
    assert difference(model, result.model, X) < 1e-5
    assert torch.equal(outputs(model), before)
    if not traced:
        convbn.save_fused(model, result, tmp_path / "a.safetensors")
        loaded = convbn.load_fused(tmp_path / "a.safetensors", build)
        assert torch.equal(outputs(loaded), outputs(result.model))
        own = convbn.fuse(model, X, options=MATERIALIZE, inplace=True).model
        assert own is model
        assert torch.equal(outputs(model), outputs(result.model))


@pytest.mark.parametrize("name", [*PARAMETRISED, *OWN_FORWARDS])
def test_without_the_option_the_reason_names_it_and_a_program_folds(
    name: str, randomised: Any, fold: Any, fold_program: Any
) -> None:
    layer = (PARAMETRISED | OWN_FORWARDS)[name]().eval()
    model = randomised(nn.Sequential(layer, nn.BatchNorm2d(layer(X).shape[1])))
    outcome = fold(model, X)
    assert outcome.kept == {"1": Reason.PARAMETRIZED}
    assert (
        "an exported program and an ONNX model fold it, a module with --materialize" in outcome.details["1"]
    )
    assert not fold_program(torch.export.export(model, (X,))).kept


@pytest.mark.parametrize(
    ("norm", "activation"),
    [
        (lambda: Activated(), nn.LeakyReLU(0.01)),
        (lambda: Activated(activation=lambda x: functional.leaky_relu_(x, 0.2)), nn.LeakyReLU(0.2)),
        (lambda: Activated(activation=lambda x: functional.elu(x, 0.7)), nn.ELU(0.7)),
        (lambda: Activated(activation=functional.silu), nn.SiLU()),
        (lambda: Rectified(4), nn.ReLU()),
        (lambda: Activated(activation=lambda x: x), None),
    ],
    ids=["leaky", "leaky in place", "elu", "silu", "relu of a subclass", "scale alone"],
)
def test_a_batchnorm_with_an_activation(
    norm: Any, activation: nn.Module | None, randomised: Any, fold: Any, difference: Any
) -> None:
    model = randomised(nn.Sequential(conv(), norm(), nn.Conv2d(4, 2, 1)))
    kept = fold(model, X)
    assert "a module with --materialize" in kept.details["1"]
    folded = convbn.fuse(model, X, options=MATERIALIZE)
    assert folded.report.batchnorm.after == 0
    rest = folded.model[1]
    assert repr(rest) == repr(
        nn.Identity() if activation is None else nn.Sequential(nn.Identity(), activation)
    )
    assert difference(model, folded.model, X) < 1e-5


def test_products_and_other_ranks(randomised: Any) -> None:
    layer = Equalised(functional.linear, (5, 3)).double()
    model = randomised(nn.Sequential(layer, nn.BatchNorm1d(5).double(), nn.Linear(5, 2).double()))
    result = convbn.fuse(model, torch.randn(4, 3, dtype=torch.float64), options=MATERIALIZE)
    assert result.report.batchnorm.after == 0
    assert type(result.model[0]) is nn.Linear
    assert result.model[0].weight.dtype == torch.float64


def test_what_folds_without_it_stays_as_it_is(randomised: Any) -> None:
    class Own(nn.Conv2d):
        def forward(self, x):
            return functional.conv2d(x, self.weight, self.bias)

    class Frozen(Activated):
        def forward(self, x):
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )

    model = randomised(nn.Sequential(Own(3, 4, 1), Frozen(), nn.BatchNorm2d(4)))
    copied, changed = materialized(model)
    assert changed == ()
    assert [type(part) for part in copied] == [Own, Frozen, nn.BatchNorm2d]


class ByData(Standardised):
    def forward(self, x):
        return functional.conv2d(x, self.weight * x.mean(), self.bias)


class ByLength(Standardised):
    def forward(self, x):
        return functional.conv2d(x, self.weight * x.shape[-1], self.bias)


class Twice(Standardised):
    def forward(self, x):
        return super().forward(x) + super().forward(x)


class Padded(Standardised):
    def forward(self, x):
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class Refusing(Standardised):
    def forward(self, x):
        if x.shape[-1] != 9:
            raise ValueError("another size")
        return super().forward(x)


class Counted(Activated):
    def forward(self, x):
        return super().forward(x).round()


class Noisy(nn.Module):
    def forward(self, weight):
        return weight + torch.randn_like(weight)


@pytest.mark.parametrize(
    "part",
    [
        *(kind(3, 4, 3) for kind in (ByData, ByLength, Twice, Padded, Refusing)),
        Counted(),
        parametrize.register_parametrization(conv(), "weight", Noisy()),
        torch.jit.script(conv()),
        nn.Sequential(conv()),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_is_no_layer_with_a_fixed_weight(part: nn.Module) -> None:
    model = nn.Sequential(part).eval()
    assert materialize(model) == ()
    assert model[0] is part


def test_what_trains_and_what_is_hooked_stays() -> None:
    model = nn.Sequential(spectral_norm(conv()), Standardised(4, 4, 1)).train()
    assert materialize(model) == ()
    model.eval()
    model[1].register_forward_hook(lambda *_: None)
    assert materialize(model) == ("0",)


def test_tied_masks_and_other_holders_keep_their_numbers() -> None:
    """Two layers that prune one parameter differently, which a third one reads as it is."""
    first, second, third = (nn.Linear(3, 3, bias=False) for _ in range(3))
    second.weight = third.weight = first.weight
    for layer in (first, second):
        prune.random_unstructured(layer, "weight", 0.4)
    model = nn.Sequential(first, second, third).eval()
    x = torch.randn(2, 3)
    expected = outputs(model, x)
    assert materialize(model) == ("0", "1")
    assert torch.equal(outputs(model, x), expected)
    assert torch.equal(third.weight, model[2].weight)


def test_whether_it_trains_and_what_it_is_stays() -> None:
    frozen = parametrizations.weight_norm(conv())
    frozen.requires_grad_(False)
    of_a_buffer = nn.BatchNorm2d(4)
    parametrize.register_parametrization(of_a_buffer, "running_var", nn.Softplus())
    model = nn.Sequential(frozen, of_a_buffer).eval()
    expected = outputs(model)
    materialize(model)
    assert not model[0].weight.requires_grad
    assert not isinstance(model[1].running_var, nn.Parameter)
    assert "running_var" in dict(model[1].named_buffers())
    assert torch.equal(outputs(model), expected)


def test_a_recurrent_layer_runs_on() -> None:
    model = weight_norm(nn.LSTM(3, 4), "weight_hh_l0").eval()
    x = torch.randn(5, 2, 3)
    expected = model(x)[0]
    assert materialize(model) == ("",)
    assert torch.equal(model(x)[0], expected)


@pytest.mark.parametrize(
    ("paths", "cause"),
    [
        (["1"], "computes no weight in '1'"),
        ("0", "malformed in 'materialized'"),
        ([3], "malformed in 'materialized'"),
    ],
)
def test_a_description_that_does_not_fit(paths: Any, cause: str, randomised: Any, tmp_path: Any) -> None:
    def build() -> nn.Module:
        return randomised(nn.Sequential(weight_norm(conv()), nn.BatchNorm2d(4)))

    model = build()
    convbn.save_fused(model, convbn.fuse(model, X, options=MATERIALIZE), tmp_path / "a.safetensors")
    edit_header(tmp_path / "a.safetensors", lambda document: {**document, "materialized": paths})
    with pytest.raises(BadInputError, match=cause):
        convbn.load_fused(tmp_path / "a.safetensors", build)


def test_a_part_whose_children_have_parameters_is_no_layer() -> None:
    """Of several numbers each, which have no truth value."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.inner = nn.Parameter(torch.ones(3, 3)), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) @ self.weight

    assert materialize(nn.Sequential(Around().eval())) == ()
