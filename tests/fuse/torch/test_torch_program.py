"""Exported programs: signatures, sharing, saving and what an edit leaves behind."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from convbn.fuse.refusal import Reason


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 5, bias=False),
        nn.BatchNorm1d(5, affine=False),
    )


CONV = torch.ops.aten.conv2d.default
X = torch.linspace(-1, 1, 2 * 3 * 36).reshape(2, 3, 6, 6)


def export(model, **options):
    return torch.export.export(model, (X,), strict=False, **options)


@pytest.fixture
def model(randomised):
    return randomised(net())


@pytest.fixture(params=["exported", "decomposed", "functional"])
def program(request, model):
    """The same model as torch.export gives it and as two rounds of lowering leave it."""
    exported = export(model, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    if request.param == "exported":
        return exported
    return exported.run_decompositions({} if request.param == "functional" else None)


def test_folds_saves_loads_and_unflattens(program, model, fold_program, difference):
    outcome = fold_program(program)
    assert list(outcome.folded.values()) == ["0", "3", "6"]
    buffer = io.BytesIO()
    torch.export.save(outcome.model, buffer)
    buffer.seek(0)
    larger = torch.cat([X, X * 2, X * 3])
    for folded in (outcome.model.module(), torch.export.load(buffer).module()):
        assert difference(model, folded, X) < 2e-6
        assert difference(model, folded, larger) < 2e-6
    assert difference(model, torch.export.unflatten(outcome.model), X) < 2e-6


def test_nothing_of_a_batchnorm_is_left(program, fold_program):
    outcome = fold_program(program)
    left = {"0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"}
    assert set(outcome.model.state_dict) == left
    assert {spec.target for spec in outcome.model.graph_signature.input_specs} == left | {None}
    assert not [node for node in outcome.model.graph.nodes if "batch_norm" in str(node.target)]
    assert outcome.report.nodes.after == outcome.report.nodes.before - 3


def test_folding_twice_changes_nothing(program, fold_program):
    once = fold_program(program).model
    twice = fold_program(once)
    assert not twice.folded
    assert not twice.kept
    assert twice.model.graph_module.code == once.graph_module.code


def test_untouched_tensors_are_shared(randomised, fold_program):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    program = export(model)
    folded = fold_program(program).model
    assert folded.state_dict["3.weight"] is program.state_dict["3.weight"]
    assert folded.state_dict["0.weight"] is not program.state_dict["0.weight"]


def test_batchnorm_that_gives_the_output(randomised, fold_program, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    folded = fold_program(export(model)).model
    assert [spec.arg.name for spec in folded.graph_signature.output_specs] == ["conv2d"]
    assert difference(model, folded.module(), X) < 2e-6


def test_weight_with_another_reader_is_cloned(randomised, fold_program, difference):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(x)) + self.conv(x).sigmoid()

    model = randomised(Twice())
    outcome = fold_program(export(model))
    assert outcome.folded == {"bn": "conv"}
    assert {"conv.weight", "conv.weight_1", "conv.bias", "conv.bias_1"} == set(outcome.model.state_dict)
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_two_calls_of_a_convolution_become_one(randomised, fold_program, difference):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(x)) + self.conv(x)

    model = randomised(Twice())
    outcome = fold_program(export(model))
    assert [merged.rule for merged in outcome.report.merged] == ["merge-parallel-convs"]
    assert set(outcome.model.state_dict) == {"conv.weight", "conv.bias"}
    assert [str(node.target) for node in outcome.model.graph.find_nodes(op="call_function", target=CONV)]
    assert len(outcome.model.graph.nodes) == 5  # two tensors, the input, one convolution, the output
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_conv_called_twice_with_a_batchnorm_each(randomised, fold_program, difference):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.one(self.conv(x)) * self.two(self.conv(x + 1))

    model = randomised(Heads())
    outcome = fold_program(export(model))
    assert outcome.folded == {"one": "conv", "two": "conv (call 2)"}
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_transposed_weight_with_another_reader(randomised, fold_program, difference):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))
            self.bn = nn.BatchNorm1d(5)

        def forward(self, x):
            x = x.flatten(1)[:, :6]
            return self.bn(x @ self.weight.t()) + torch.addmm(self.bn.bias, x, self.weight.t(), beta=2)

    model = randomised(Product())
    outcome = fold_program(export(model))
    assert list(outcome.folded) == ["bn"]
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_addmm_with_factors(randomised, fold_program, difference):
    class Factors(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.bn = nn.Linear(5, 6), nn.BatchNorm1d(5)

        def forward(self, x):
            x = x.flatten(1)[:, :6]
            return self.bn(torch.addmm(self.linear.weight[0], x, self.linear.weight, beta=0.5, alpha=3))

    model = randomised(Factors())
    outcome = fold_program(export(model))
    assert list(outcome.folded) == ["bn"]  # the bias, cut out of the weight, becomes a tensor of its own
    assert difference(model, outcome.model.module(), X) < 2e-6

    class Whole(Factors):
        def forward(self, x):
            x = x.flatten(1)[:, :6]
            return self.bn(torch.addmm(self.bn.bias, x, self.linear.weight, beta=0.5, alpha=3))

    model = randomised(Whole())
    outcome = fold_program(export(model))
    assert list(outcome.folded) == ["bn"]
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_non_persistent_statistics_and_constants(randomised, fold_program, difference):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("mean", torch.randn(4), persistent=False)
            self.variance = torch.rand(4) + 0.5

        def forward(self, x):
            return nn.functional.batch_norm(self.conv(x), self.mean, self.variance)

    model = Plain().eval()
    outcome = fold_program(export(model))
    assert list(outcome.folded.values()) == ["conv"]
    assert not outcome.model.constants
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_training_batchnorm_stays_in_every_lowering(model, fold_program):
    model[1].train()
    exported = export(model)
    for program in (exported, exported.run_decompositions()):
        outcome = fold_program(program)
        assert outcome.kept == {"1": Reason.TRAINING_MODE}
        assert len(outcome.folded) == 2


def test_statistics_that_are_used_elsewhere_stay(randomised, fold_program, difference):
    class Peeking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.conv(x)), self.bn.running_mean * 2

    model = randomised(Peeking())
    outcome = fold_program(export(model))
    assert "bn.running_mean" in outcome.model.state_dict
    assert "bn.running_var" not in outcome.model.state_dict
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_preserved_call_signature_still_unflattens(randomised, fold_program, difference):
    model = randomised(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.ReLU()))
    program = export(model, preserve_module_call_signature=("0",))
    outcome = fold_program(program)
    assert len(outcome.folded) == 1
    assert difference(model, torch.export.unflatten(outcome.model), X) < 2e-6
