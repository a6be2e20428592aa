"""What cannot be captured is refused in one line that names the cause and the way out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from convbn.errors import BadInputError, UsageError
from convbn.fuse.frontends.torch.capture.module import capture_module
from convbn.fuse.frontends.torch.capture.program import capture_program


def refused(model, inputs, cause, error=BadInputError):
    with pytest.raises(error, match=cause) as caught:
        capture_module(model, inputs)
    assert "\n" not in str(caught.value)
    assert caught.value.hint or "not a torch.nn.Module" in str(caught.value)
    return caught.value


def test_forward_that_branches_on_its_input():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert "example_inputs" in str(refused(Branching(), None, "cannot be traced"))


def test_inputs_that_the_forward_does_not_take():
    refused(nn.Linear(3, 4), (torch.ones(2, 5),), "fails on the example inputs")


@pytest.mark.parametrize("inputs", [torch.ones(2, 3), [torch.ones(2, 3)], {"x": torch.ones(2, 3)}], ids=type)
def test_inputs_that_are_no_tuple(inputs):
    refused(nn.Linear(3, 4), inputs, "not a tuple", UsageError)


def test_lazy_module():
    refused(nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), None, "'0.weight' is lazy")


def test_meta_module():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    refused(model, None, "'0.weight' is on the meta device")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_script_module():
    refused(torch.jit.script(nn.Linear(3, 4)), None, "ScriptModule")


def test_module_that_cannot_be_copied():
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of me")

    refused(Single(3, 4), None, "cannot be copied .*there is one of me")


@pytest.mark.parametrize("model", [None, "model.pt", nn.Linear, torch.ones(1)], ids=str)
def test_no_module(model):
    refused(model, None, "is not a torch.nn.Module")


def test_no_program():
    with pytest.raises(BadInputError, match="Linear is not an ExportedProgram"):
        capture_program(nn.Linear(3, 4))


@pytest.mark.parametrize("wrap", [DataParallel, torch.compile], ids=["data-parallel", "compiled"])
def test_wrapped_module_is_taken_out(wrap, randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 4, 4)
    outcome = fold(wrap(model), x)
    assert outcome.folded == {"1": "0"}
    assert type(outcome.model) is nn.Sequential
    assert difference(model, outcome.model, x) < 2e-6


def test_module_compiled_in_place(randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 4, 4)
    model.compile()
    outcome = fold(model, x)
    assert outcome.folded == {"1": "0"}
    outcome.model._compiled_call_impl = None  # compiling takes a compiler and seconds
    assert difference(plain, outcome.model, x) < 2e-6


def test_quantised_weight_is_kept_with_the_reason(fold):
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.ones(4, 3, dtype=torch.int8))
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.bn(nn.functional.linear(x, self.weight.float()))

    outcome = fold(Quantised().eval(), torch.randn(2, 3))
    assert outcome.kept == {"bn": "weight-not-constant"}
