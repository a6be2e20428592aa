"""What the page of reasons advises for PyTorch modules: a BatchNorm stays for that reason, and goes on that advice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from convbn.fuse.refusal import Reason

X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).tanh()


class Shared(Plain):
    """Another layer of its own has the weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.other(x)


class Twice(Plain):
    """The layer is called where a BatchNorm follows, and where none does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.conv(x).tanh()


class Function(Plain):
    """``F.batch_norm`` in the code of the forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        return nn.functional.batch_norm(
            self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias
        ).tanh()


@pytest.mark.parametrize(
    ("kind", "reason", "says"),
    [
        (Shared, Reason.PARAMETER_SHARED, "is also"),
        (Twice, Reason.CALLED_SEVERAL_TIMES, "times in one run"),
        (Function, Reason.NOT_A_MODULE, "is called in the forward of"),
    ],
)
def test_the_exported_program_folds(
    kind: type[nn.Module],
    reason: Reason,
    says: str,
    randomised: Any,
    fold: Any,
    fold_program: Any,
    difference: Any,
) -> None:
    model = randomised(kind())
    kept = fold(model, X)
    (name,) = [name for name, why in kept.kept.items() if why is reason]
    assert says in kept.details[name]
    outcome = fold_program(torch.export.export(model, (X,), strict=False))
    assert not outcome.kept, outcome.details
    assert difference(model, outcome.model.module(), X) < 2e-6


@pytest.mark.parametrize("on", ["conv", "norm"])
def test_without_its_hooks_it_folds(on: str, randomised: Any, fold: Any, difference: Any) -> None:
    model = randomised(Plain())
    handle = getattr(model, on).register_forward_hook(lambda *_: None)
    assert fold(model, X).kept == {"norm": Reason.HOOKED}
    handle.remove()
    outcome = fold(model, X)
    assert outcome.folded == {"norm": "conv"}
    assert difference(model, outcome.model, X) < 2e-6


def test_without_its_parametrization_it_folds(randomised: Any, fold: Any, difference: Any) -> None:
    model = randomised(Plain())
    parametrizations.weight_norm(model.conv)
    assert fold(model, X).kept == {"norm": Reason.PARAMETRIZED}
    parametrize.remove_parametrizations(model.conv, "weight")
    outcome = fold(model, X)
    assert outcome.folded == {"norm": "conv"}
    assert difference(model, outcome.model, X) < 2e-6


def test_in_evaluation_it_folds(randomised: Any, fold: Any) -> None:
    model = randomised(Plain())
    model.norm.train()
    assert fold(model, X).kept == {"norm": Reason.TRAINING_MODE}
    assert fold(model.eval(), X).folded == {"norm": "conv"}


class Rows(nn.Module):
    """A product whose rank follows from no line of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)).tanh()


def test_with_example_inputs_the_rank_is_known(randomised: Any, fold: Any, difference: Any) -> None:
    model, x = randomised(Rows()), torch.rand(5, 4)
    kept = fold(model)
    assert kept.kept == {"norm": Reason.AXIS_NOT_PROVEN}
    assert "example inputs, --input-shape or stored shapes would settle it" in kept.details["norm"]
    outcome = fold(model, x)
    assert outcome.folded == {"norm": "linear"}
    assert difference(model, outcome.model, x) < 2e-6
