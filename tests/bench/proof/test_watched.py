"""Layers of modules and programs: called twice, with something between, by their tensors, and seen by the outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import convbn
from convbn.bench.equivalence.compare import compare
from convbn.bench.equivalence.reference_run import execute
from convbn.bench.models.inputs import Feeds
from convbn.bench.proof.gaps import Bound, gap_of, noise_bound
from convbn.bench.proof.prove import FoldPlan, Shown
from convbn.bench.proof.torch.copies import moved_by_rounding
from convbn.bench.proof.torch.modules import prove_layers
from convbn.errors import CheckFailedError


def hows(report: convbn.Report) -> dict[str, str | None]:
    return {fold["name"]: fold["how"] for fold in report.verify["proof"]["folds"]}


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        for name, buffer in self.norm.named_buffers():
            if name != "num_batches_tracked":
                buffer.uniform_(0.5, 2)
        self.eval()

    def called(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.norm(self.conv(x))
        return made


class Twice(Layer):
    """One layer that is called twice, and that no output shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.called(x) + self.called(2 * x) - 1e4) + x.mean()


class Casting(Layer):
    """It casts and makes tensors by itself, which float64 survives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.called(x.half().float() @ torch.eye(8)) - 1e4) + x.mean()


class Narrow(Layer):
    """It reads an array of float32, and so does not run in float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.called(x @ torch.from_numpy(np.eye(8, dtype=np.float32))) - 1e4) + x.mean()


class Choosing(Layer):
    """Of its outputs none is a float, and its layer is called with arguments that no hook is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.conv(x) + 0.0)).argmax(1)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Twice, {"norm": "float64", "norm (call 2)": "float64"}),
        (Casting, {"norm": "float64"}),
        (Narrow, {"norm": "float32"}),
    ],
)
def test_layers_are_judged_call_by_call_in_the_type_that_they_run_in(
    module: type[Layer], expected: dict[str, str]
) -> None:
    result = convbn.fuse(module(), IMAGE)
    assert hows(result.report) == expected
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        wrong.conv.weight.mul_(1.01)
    plan = FoldPlan(tuple((fold.name, fold.into) for fold in result.report.folded))
    answer = compare(module(), wrong, example_inputs=(IMAGE,), plan=plan)
    assert answer.status == "different"
    assert answer.proof is not None
    assert len(answer.proof.wrong) == len(expected)


def run(module: nn.Module, feeds: Feeds) -> list[np.ndarray]:
    return execute(module, "copy", [feeds]).outputs[0]


def test_one_fold_of_a_layer_that_is_called_twice_is_judged_both_times() -> None:
    module, plan = Twice(), FoldPlan((("norm", ("conv",)),))
    local = prove_layers(module, folded_by_hand(module), plan, {"x": IMAGE.numpy()}, run)
    assert local is not None
    assert [outcome.ok for outcome in local.outcomes] == [True, True]
    assert local.shown == (Shown("norm", "float64"),)


def test_a_batchnorm_that_ran_twice_before_its_layer_is_not_judged() -> None:
    class Before(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norm = copy.deepcopy(self.norm)
            self.conv = nn.Conv2d(6, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = torch.cat([x, x], 1)
            other = self.norm(2 * wide)
            made: torch.Tensor = self.conv(self.norm(wide)) + other.mean()
            return made

    module, plan = Before().eval(), FoldPlan((("norm (call 2)", ("conv",)),))
    local = prove_layers(module, module, plan, {"x": IMAGE.numpy()}, run)
    assert local is not None
    assert local.outcomes == ()


def test_in_float64_a_layer_may_be_off_by_eight_times_what_its_rounding_moves() -> None:
    class Plain(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.called(x)

    module = Plain()
    folded, plan = folded_by_hand(module), FoldPlan((("norm", ("conv",)),))
    local = prove_layers(module, folded, plan, {"x": IMAGE.numpy()}, run)
    assert local is not None
    with torch.no_grad():
        wide = IMAGE.double()
        wanted = copy.deepcopy(module).double()(wide).numpy()
        exact = copy.deepcopy(folded.conv).double()(wide).numpy()
        moved = [layer(wide).numpy() for layer in moved_by_rounding(folded.conv, {""})]
    noise = noise_bound(exact, moved, 1.0, 2.0**-23)
    bias = np.abs(folded.conv.bias.detach().double().numpy())
    expected = gap_of(wanted, exact, Bound(noise.mean + 4 * 2.0**-23 * bias, noise.rest, 1))
    assert local.outcomes[0].bound == pytest.approx(expected.bound)


def test_float64_settles_no_choice_that_differs() -> None:
    module = Choosing()
    folded = copy.deepcopy(module)
    folded.norm = nn.Identity()  # type: ignore[assignment]  # takes its place
    plan = FoldPlan((("norm", ("conv",)),))
    assert compare(module, folded.eval(), example_inputs=(IMAGE,), plan=plan).status == "different"


def test_a_layer_of_two_batchnorms_is_none_that_is_judged_by_itself() -> None:
    class Two(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.other = copy.deepcopy(self.norm)

    plan = FoldPlan((("norm", ("conv",)), ("other", ("conv",))))
    from convbn.bench.proof.torch.modules import prove_layers

    module = Two()
    module.forward = lambda x: module.called(x)  # type: ignore[method-assign]  # is what runs
    local = prove_layers(module, module, plan, {"x": IMAGE.numpy()}, lambda m, feeds: [])
    assert local is not None
    assert local.outcomes == ()


@pytest.mark.filterwarnings("error")
def test_an_example_without_numbers_shows_nothing_and_warns_of_nothing() -> None:
    with pytest.raises(CheckFailedError, match="no comparison could see a fold"):
        convbn.fuse(Casting(), torch.zeros(0, 3, 8, 8))


def folded_by_hand(
    module: nn.Module, conv: str = "conv", norm: str = "norm", factor: float = 1.0
) -> nn.Module:
    """The BatchNorm in ``norm(factor · conv(x))``, taken into the layer before the factor."""
    made = copy.deepcopy(module)
    layer, other = getattr(made, conv), getattr(made, norm)
    with torch.no_grad():
        scale = other.weight.double() / torch.sqrt(other.running_var.double() + other.eps)
        shift = other.bias.double() - other.running_mean.double() * scale
        layer.bias.copy_(layer.bias.double() * scale + shift / factor)
        layer.weight.copy_(layer.weight.double() * scale[:, None, None, None])
    setattr(made, norm, nn.Identity())
    return made.eval()


@pytest.mark.parametrize(
    "between", [lambda y: y.mul_(4), lambda y: y * 2 * 2, lambda y: y.relu_() * 4 - y.mul_(0)]
)
def test_memory_that_holds_other_numbers_by_then_is_no_layer_before_its_batchnorm(
    between: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    class Between(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(between(self.conv(x)))  # type: ignore[no-any-return]

    module = Between()
    with torch.no_grad():
        assert module.conv.bias is not None
        module.conv.bias.fill_(9)  # nothing is below zero
    plan = FoldPlan((("norm", ("conv",)),))
    folded = folded_by_hand(module, factor=4.0)
    answer = compare(module, folded, example_inputs=(IMAGE,), plan=plan)
    assert answer.equal, answer.reason
    assert answer.proof is not None
    assert answer.proof.folds == (Shown("norm", "the outputs"),)
    with torch.no_grad():
        folded.conv.weight.mul_(1.01)
    assert compare(module, folded, example_inputs=(IMAGE,), plan=plan).status == "different"


class Steep(Layer):
    """Its outputs differ in float32 by what no input moves them by; and it has a branch that no output shows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.other = copy.deepcopy(self.conv), copy.deepcopy(self.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.sin(4e3 * self.called(torch.sign(x)))
        return seen + 0 * self.other(self.hidden(x) + 0.0)


def test_a_fold_is_not_seen_by_outputs_that_differ_anyway() -> None:
    module = Steep()
    folded = folded_by_hand(folded_by_hand(module), "hidden", "other")
    plan = FoldPlan((("norm", ("conv",)), ("other", ("hidden",))))
    answer = compare(module, folded, example_inputs=(IMAGE,), plan=plan)
    assert answer.equal, answer.reason
    assert not answer.outputs[0].ok  # float64 says so
    assert answer.proof is not None
    assert answer.proof.folds == (Shown("norm", "float64"), Shown("other", None))


class Tied(Layer):
    """Which of two is the larger, in forty places of four thousand by their rounding alone, as no input moves it."""

    def __init__(self) -> None:
        super().__init__()
        level = self.called(torch.sign(TILES))[:, :1].detach()
        self.level = nn.Parameter(level + 0.005 * level.abs())
        self.level.data.flatten()[:40] = level.flatten()[:40]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.called(torch.sign(x))[:, :1], self.level], 1).argmax(1)


TILES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_ties_of_a_program_are_settled_in_float64() -> None:
    with torch.no_grad():
        program = torch.export.export(Tied().eval(), (TILES,))
    result = convbn.fuse(program, inputs=(TILES,))
    assert "in float64" in result.report.verify["reason"]
    assert hows(result.report) == {"norm": "the outputs"}
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        next(p for name, p in wrong.named_parameters() if name.endswith("conv.weight")).mul_(1.01)
    plan = FoldPlan((("norm", ("conv",)),))
    assert convbn.verify(program, wrong, inputs=(TILES,), plan=plan).status == "different"


class ByTensor(Layer):
    """A convolution that is called by its tensors, and an input that is given by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(3)))

    def forward(self, *, image: torch.Tensor, masked: bool) -> torch.Tensor:
        made: torch.Tensor = self.norm(torch.nn.functional.conv2d(image, self.weight))
        return 0 * made + self.called(image) if masked else made


@pytest.mark.parametrize("masked", [False, True])
def test_layers_that_a_program_calls_by_their_tensors_are_looked_for_too(masked: bool) -> None:
    program = torch.export.export(ByTensor(), (), {"image": IMAGE, "masked": masked})
    found = sorted(str(how) for how in hows(convbn.fuse(program).report).values())
    assert found == (["None", "the outputs"] if masked else ["the outputs"])
