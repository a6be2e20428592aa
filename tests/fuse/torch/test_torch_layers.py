"""What folds: every layer with a rule, as a module, traced and as a program."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def both_forms(model, x, fold, fold_program, difference, bound=2e-6):
    """Fold as module and as program; compare both and return the module's outcome."""
    as_module = fold(model, x)
    assert difference(model, as_module.model, x) < bound
    program = torch.export.export(model, (x,), strict=False)
    as_program = fold_program(program)
    assert as_program.folded == as_module.folded
    assert difference(model, as_program.model.module(), x) < bound
    return as_module, as_program


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "stride": 2},
        {"groups": 2, "dilation": 2, "padding": 3},
        {"groups": 4, "bias": False, "padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect", "bias": False},
    ],
    ids=str,
)
def test_convolution_of_every_rank_folds(rank, options, randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(CONVS[rank](4, 8, 3, **options), NORMS[rank](8)))
    x = torch.randn(2, 4, *[7] * rank)
    as_module, as_program = both_forms(model, x, fold, fold_program, difference)
    assert as_module.folded == as_program.folded == {"1": "0"}
    assert isinstance(as_module.model[1], nn.Identity)
    assert type(as_module.model) is type(model)
    assert as_program.report.nodes.after == as_program.report.nodes.before - 1


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution_folds_with_any_groups(
    rank, groups, randomised, fold, fold_program, difference
):
    model = randomised(
        nn.Sequential(
            TRANSPOSED[rank](4, 8, 3, groups=groups, stride=2, output_padding=1, bias=groups == 2),
            NORMS[rank](8),
        )
    )
    as_module, _ = both_forms(model, torch.randn(2, 4, *[5] * rank), fold, fold_program, difference)
    assert as_module.folded == {"1": "0"}


@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_two_axes_folds(bias, randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7)))
    as_module, _ = both_forms(model, torch.randn(3, 5), fold, fold_program, difference)
    assert as_module.folded == {"1": "0"}


def test_two_batchnorms_in_a_row_both_go(randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    both_forms(model, torch.randn(2, 3, 6, 6), fold, fold_program, difference)
    assert fold(model).folded == {"1": "0", "2": "0"}


def test_batchnorm_behind_a_batchnorm_without_parameters(randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)))
    as_module, as_program = both_forms(model, torch.randn(2, 3, 4, 4), fold, fold_program, difference)
    assert as_module.folded == as_program.folded == {"0": "1"}
    assert set(as_module.model.state_dict()) >= {"1.weight", "1.bias"}


def test_without_running_scale_and_momentum(randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False, momentum=None)))
    as_module, _ = both_forms(model, torch.randn(2, 3, 4, 4), fold, fold_program, difference)
    assert as_module.folded == {"1": "0"}


def test_dropout_outside_training_is_no_obstacle(randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(4)))
    as_module, _ = both_forms(model, torch.randn(2, 3, 4, 4), fold, fold_program, difference)
    assert as_module.folded == fold(model).folded == {"3": "0"}


def test_in_place_activation_behind(randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)))
    both_forms(model, torch.randn(2, 3, 4, 4), fold, fold_program, difference)


def test_sync_batchnorm_and_a_plain_subclass(randomised, fold, difference):
    class Named(nn.BatchNorm2d):
        pass

    model = randomised(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.ReLU(), nn.Conv2d(4, 4, 1), Named(4))
    )
    x = torch.randn(2, 3, 4, 4)
    outcome = fold(model, x)
    assert outcome.folded == {"1": "0", "4": "3"}
    assert difference(model, outcome.model, x) < 2e-6


def test_subclass_with_a_forward_of_its_own_that_uses_the_bias(randomised, fold, difference):
    class Padded(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(nn.functional.pad(x, (1, 0, 1, 0)), self.weight, self.bias)

    model = randomised(nn.Sequential(Padded(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 6, 6)
    outcome = fold(model, x)
    assert outcome.folded == {"1": "0"}
    assert difference(model, outcome.model, x) < 2e-6
    assert fold(model).kept["1"] == "producer-not-foldable"


def test_state_of_the_result_loads_into_a_copy_of_it(randomised, fold):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
    outcome = fold(model, torch.randn(2, 3, 4, 4))
    assert list(outcome.model.state_dict()) == ["0.weight", "0.bias"]
    copy.deepcopy(outcome.model).load_state_dict(outcome.model.state_dict())


def test_module_under_two_names_is_replaced_under_both(randomised, fold, difference):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, bias=False)
            self.bn = nn.BatchNorm2d(4)
            self.alias = self.bn
            self.head = self.conv

        def forward(self, x):
            return self.alias(self.conv(x))

    model, x = randomised(Two()), torch.randn(2, 3, 4, 4)
    for outcome in (fold(model, x), fold(model)):
        assert list(outcome.folded) == ["bn"]
        assert isinstance(outcome.model.bn, nn.Identity)
        assert outcome.model.alias is outcome.model.bn
        assert difference(model, outcome.model, x) < 2e-6


def test_requires_grad_and_memory_format_stay(randomised, fold, fold_program):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    model = model.to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    x = torch.randn(2, 3, 6, 6)
    folded = fold(model, x).model
    program = fold_program(torch.export.export(model, (x,), strict=False)).model
    for state in (dict(folded.named_parameters()), program.state_dict):
        assert state["0.weight"].is_contiguous(memory_format=torch.channels_last)
        assert not state["0.weight"].requires_grad
        assert not state["0.bias"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_keep_their_dtype(dtype, randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).to(dtype)
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    bound = 8 * torch.finfo(dtype).eps
    as_module, as_program = both_forms(model, x, fold, fold_program, difference, bound)
    assert as_module.folded == {"1": "0"}
    assert {tensor.dtype for tensor in as_module.model.state_dict().values()} == {dtype}
    assert {tensor.dtype for tensor in as_program.model.state_dict.values()} == {dtype}


def test_half_layer_before_a_float_batchnorm(randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[0].bfloat16()
    x = torch.randn(2, 3, 6, 6, dtype=torch.bfloat16)
    outcome = fold(model, x)
    assert outcome.folded == {"1": "0"}
    assert outcome.model[0].bias.dtype == torch.bfloat16
    assert difference(model, outcome.model, x) < 0.05
