"""Modules that other folders get wrong: each has one right answer, and it is never a silent change."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from convbn.fuse.refusal import Reason

IMAGE = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


def conv(**options):
    return nn.Conv2d(4, 4, 1, **options)


def check(model, outcome, difference, kept, x=IMAGE):
    assert outcome.kept == kept, outcome.details
    assert difference(model, outcome.model, x) < 2e-6


@pytest.fixture(params=["exported", "traced"])
def fold_both(request, fold):
    """The fold of a module, once with example inputs and once without."""
    return lambda model, x=IMAGE: fold(model, x) if request.param == "exported" else fold(model)


class Pair(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.conv = conv(**options)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))


# --- modules that are used more than once ---------------------------------------------------------------


def test_conv_and_batchnorm_called_twice(randomised, fold_both, difference):
    class Twice(Pair):
        def forward(self, x):
            return super().forward(super().forward(x))

    model = randomised(Twice())
    check(model, fold_both(model), difference, {})


def test_conv_called_twice_with_the_batchnorm_on_one_path(randomised, fold_both, difference):
    class OnePath(Pair):
        def forward(self, x):
            return self.bn(self.conv(x)) + self.conv(x + 1)

    model = randomised(OnePath())
    check(model, fold_both(model), difference, {"bn": Reason.CALLED_SEVERAL_TIMES})


def test_batchnorm_shared_by_two_convs(randomised, fold_both, difference):
    class Shared(Pair):
        def __init__(self):
            super().__init__()
            self.other = conv()

        def forward(self, x):
            return self.bn(self.conv(x)) + self.bn(self.other(x))

    model = randomised(Shared())
    check(model, fold_both(model), difference, {})


def test_batchnorm_shared_by_two_convs_folds_in_a_program(randomised, fold_program, difference):
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(bias=False)))
    model.append(model[1])
    outcome = fold_program(torch.export.export(model, (IMAGE,), strict=False))
    assert list(outcome.folded.values()) == ["0", "2"]
    assert not any("running" in name for name in outcome.model.state_dict)
    assert difference(model, outcome.model.module(), IMAGE) < 2e-6


def test_one_conv_with_two_batchnorms(randomised, fold_both, difference):
    class Fork(Pair):
        def __init__(self):
            super().__init__()
            self.second = nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) * self.second(y)

    model = randomised(Fork())
    # The convolution takes one in, the other takes its inverse.
    check(model, fold_both(model), difference, {"second": Reason.SEVERAL_READERS})


def test_conv_whose_output_is_returned_too(randomised, fold_both, difference):
    class Both(Pair):
        def forward(self, x):
            y = self.conv(x)
            return self.bn(y), y

    model = randomised(Both())
    check(model, fold_both(model), difference, {"bn": Reason.OBSERVED})


# --- tensors that are used more than once ---------------------------------------------------------------


def test_two_modules_with_one_parameter(randomised, fold_both, difference):
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()))
    model[3].weight = model[0].weight
    check(model, fold_both(model), difference, {"1": Reason.PARAMETER_SHARED})


def test_two_parameters_in_one_storage(randomised, fold_both, difference):
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()))
    model[3].weight.data = model[0].weight.data
    check(model, fold_both(model), difference, {"1": Reason.PARAMETER_SHARED})


def test_two_parameters_that_overlap_in_part(randomised, fold_both, difference):
    flat = torch.randn(24)
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()))
    model[0].weight.data = flat[:16].view(4, 4, 1, 1)
    model[3].weight.data = flat[8:].view(4, 4, 1, 1)
    check(model, fold_both(model), difference, {"1": Reason.PARAMETER_SHARED})


def test_two_parameters_side_by_side_in_one_storage_fold(randomised, fold_both, difference):
    flat = torch.randn(32)
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()))
    model[0].weight.data = flat[:16].view(4, 4, 1, 1)
    model[3].weight.data = flat[16:].view(4, 4, 1, 1)
    check(model, fold_both(model), difference, {})


def test_tied_weight_is_cloned_in_a_program(randomised, fold_program, difference):
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()))
    model[3].weight = model[0].weight
    outcome = fold_program(torch.export.export(model, (IMAGE,), strict=False))
    assert outcome.folded == {"1": "0"}
    assert difference(model, outcome.model.module(), IMAGE) < 2e-6


def test_weight_that_the_forward_reads_as_well(randomised, fold_both, difference):
    class Regularised(Pair):
        def forward(self, x):
            return super().forward(x) + self.conv.weight.sum()

    model = randomised(Regularised())
    outcome = fold_both(model)
    assert outcome.kept["bn"] in (Reason.PARAMETER_SHARED, Reason.WEIGHT_NOT_CONSTANT)
    assert difference(model, outcome.model, IMAGE) == 0


def test_weight_that_the_model_returns(randomised, fold_both, difference):
    class Returning(Pair):
        def forward(self, x):
            return super().forward(x), self.conv.weight

    model = randomised(Returning())
    outcome = fold_both(model)
    assert outcome.kept["bn"] in (Reason.PARAMETER_SHARED, Reason.WEIGHT_NOT_CONSTANT)
    assert difference(model, outcome.model, IMAGE) == 0


def test_conv_output_that_another_layer_takes_by_keyword(randomised, fold_both, difference):
    class Keyword(Pair):
        def __init__(self):
            super().__init__()
            self.other = conv()

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + self.other(input=y).sigmoid()

    model = randomised(Keyword())
    outcome = fold_both(model)
    if outcome.kept:  # traced, the call by keyword is not looked into
        assert outcome.kept == {"bn": Reason.SEVERAL_READERS}
    else:  # the other layer takes back what the convolution takes in
        assert {name: set(into.split(", ")) for name, into in outcome.folded.items()} == {
            "bn": {"conv", "other"}
        }
    assert difference(model, outcome.model, IMAGE) < 2e-6


def test_conv_output_that_is_changed_in_place(randomised, fold_both, difference):
    class InPlace(Pair):
        def forward(self, x):
            y = self.conv(x)
            y.add_(1)
            return self.bn(y)

    model = randomised(InPlace())
    outcome = fold_both(model)
    assert list(outcome.kept) == ["bn"]
    assert difference(model, outcome.model, IMAGE) == 0


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_weight_that_the_forward_writes_to(first, randomised, fold, fold_program):
    class Counting(Pair):
        def __init__(self):
            super().__init__(bias=False)
            self.register_buffer("kernel", torch.randn(4, 4, 1, 1))

        def forward(self, x):
            if first:
                self.kernel.view(-1).add_(1)
            y = self.bn(F.conv2d(x, self.kernel))
            if not first:
                self.kernel.view(-1).add_(1)
            return y

    model = randomised(Counting())
    program = torch.export.export(model, (IMAGE,), strict=False)
    outcomes = [fold(model, IMAGE), fold_program(program), fold_program(program.run_decompositions())]
    assert [outcome.kept for outcome in outcomes] == [{"bn": Reason.WEIGHT_NOT_CONSTANT}] * 3


def test_statistics_that_another_call_updates(randomised, fold, fold_program):
    class Updating(Pair):
        def forward(self, x):
            x, bn = self.bn(x), self.bn
            return F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias)

    model = randomised(Updating())
    model.bn.train()
    kept = {"bn": Reason.TRAINING_MODE, "batch_norm_1": Reason.PARAMETERS_NOT_CONSTANT}
    assert fold(model, IMAGE).kept == kept
    assert fold_program(torch.export.export(model, (IMAGE,), strict=False)).kept == kept


# --- hooks ----------------------------------------------------------------------------------------------


def doubled(_module, _args, output):
    return output * 2


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.conv.register_forward_hook(lambda *_: None),
        lambda m: m.bn.register_forward_hook(lambda *_: None),
        lambda m: m.bn.register_forward_pre_hook(lambda *_: None),
        lambda m: m.conv.register_full_backward_hook(lambda *_: None),
        lambda m: m.bn.register_full_backward_pre_hook(lambda *_: None),
    ],
    ids=["conv", "bn", "bn-pre", "conv-backward", "bn-backward-pre"],
)
def test_hook_on_either_module(register, randomised, fold_both, difference):
    model = randomised(Pair())
    register(model)
    check(model, fold_both(model), difference, {"bn": Reason.HOOKED})


def test_hook_that_changes_the_output_between(randomised, fold, difference):
    model = randomised(Pair())
    model.conv.register_forward_hook(doubled)
    outcome = fold(model, IMAGE)
    assert list(outcome.kept) == ["bn"]
    assert difference(model, outcome.model, IMAGE) == 0


@pytest.mark.parametrize("where", [0, 1])
def test_hook_on_a_module_between_them(where, randomised, fold_both, difference):
    model = randomised(nn.Sequential(nn.Sequential(conv()), nn.Identity(), nn.BatchNorm2d(4)))
    model[where].register_forward_hook(lambda *_: None)
    check(model, fold_both(model), difference, {"2": Reason.HOOKED})


def test_hook_on_a_parent_of_both_does_not_matter(randomised, fold_both, difference):
    model = randomised(nn.Sequential(Pair(), nn.ReLU()))
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    check(model, fold_both(model), difference, {})
    assert seen


def test_forward_replaced_on_the_object(randomised, fold_both, difference):
    model = randomised(Pair())
    original = model.conv.forward
    model.conv.forward = lambda x: original(x)
    check(model, fold_both(model), difference, {"bn": Reason.HOOKED})


def test_forward_bound_to_the_object_follows_its_copy(randomised, fold, difference):
    model = randomised(Pair())
    model.forward = types.MethodType(lambda self, x: self.bn(self.conv(x)), model)
    check(model, fold(model, IMAGE), difference, {})


def test_forward_that_keeps_the_convs_output(randomised, fold_both, difference):
    class Keeping(Pair):
        def forward(self, x):
            self.features = [self.conv(x)]
            return self.bn(self.features[0])

    model = randomised(Keeping())
    outcome = fold_both(model)
    assert outcome.kept == {"bn": Reason.OBSERVED}
    assert not hasattr(model, "features")


# --- parameters that are no parameters ------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
    ],
    ids=["weight-norm", "spectral-norm", "new-weight-norm", "new-spectral-norm", "pruned"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_that_is_computed_from_others(norm, randomised, fold_both, difference):
    model = randomised(nn.Sequential(norm(conv()), nn.BatchNorm2d(4)))
    check(model, fold_both(model), difference, {"1": Reason.PARAMETRIZED})


def test_parametrization_that_was_removed_folds(randomised, fold_both, difference):
    model = nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm2d(4))
    parametrize.remove_parametrizations(model[0], "weight")
    check(randomised(model), fold_both(model), difference, {})


def test_batchnorm_scale_that_is_computed(randomised, fold_both, difference):
    class Doubled(nn.Module):
        def forward(self, weight):
            return weight * 2

    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    parametrize.register_parametrization(model[1], "weight", Doubled())
    check(model, fold_both(model), difference, {"1": Reason.PARAMETRIZED})


def test_forward_that_ignores_the_bias(randomised, fold, difference):
    class NoBias(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight)

    model = randomised(nn.Sequential(NoBias(4, 4, 1), nn.BatchNorm2d(4)))
    check(model, fold(model, IMAGE), difference, {"1": Reason.NO_BIAS})


def test_convolution_inside_the_forward_is_replaced(randomised, fold, difference):
    class Doubling(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return F.conv2d(x, weight, bias) * 2

    model = randomised(nn.Sequential(Doubling(4, 4, 1), nn.BatchNorm2d(4)))
    check(model, fold(model, IMAGE), difference, {})
    check(model, fold(model), difference, {"1": Reason.PRODUCER_NOT_LINEAR})


def test_functional_batchnorm_stays_in_a_module_and_goes_in_a_program(
    randomised, fold, fold_program, difference
):
    class Functional(Pair):
        def forward(self, x):
            bn = self.bn
            return F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias)

    model = randomised(Functional())
    outcome = fold(model, IMAGE)
    assert outcome.kept == {"batch_norm": Reason.NOT_A_MODULE, "bn": Reason.NEVER_CALLED}
    assert difference(model, outcome.model, IMAGE) == 0
    assert fold(model).kept == {"batch_norm": Reason.AXIS_NOT_PROVEN, "bn": Reason.NEVER_CALLED}
    program = fold_program(torch.export.export(model, (IMAGE,), strict=False))
    assert list(program.folded.values()) == ["conv"]
    assert difference(model, program.model.module(), IMAGE) < 2e-6


def test_functional_conv_with_its_own_bias_folds(randomised, fold, difference):
    class Functional(Pair):
        def forward(self, x):
            return self.bn(F.conv2d(x, self.conv.weight, self.conv.bias))

    model = randomised(Functional())
    check(model, fold(model, IMAGE), difference, {})


def test_matmul_has_no_bias_in_a_module_and_gets_one_in_a_program(randomised, fold, fold_program, difference):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 5))
            self.bn = nn.BatchNorm1d(5)

        def forward(self, x):
            return self.bn(x @ self.weight)

    model, x = randomised(Product()), torch.randn(3, 4)
    check(model, fold(model, x), difference, {"bn": Reason.NO_BIAS}, x)
    program = fold_program(torch.export.export(model, (x,), strict=False))
    assert list(program.folded) == ["bn"]
    assert difference(model, program.model.module(), x) < 2e-6


# --- BatchNorms that do more, or something else ---------------------------------------------------------


class WithActivation(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
        return self.act(self.drop(x))


def test_activation_inside_a_batchnorm_stays(randomised, fold_both, difference):
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(), WithActivation(4)))
    model[3].act.register_forward_hook(lambda *_: None)
    outcome = fold_both(model)
    if outcome.kept:  # traced, the rank of the second convolution's output is not known
        assert outcome.kept == {"3": Reason.AXIS_NOT_PROVEN}
    else:
        assert isinstance(outcome.model[3].act, nn.ReLU)
        assert not outcome.model[3].act.inplace
        assert model[3].act.inplace
        assert not outcome.model[3].training
    assert difference(model, outcome.model, IMAGE) < 2e-6


def test_batchnorm_that_scales_what_it_returns(randomised, fold, difference):
    class Scaled(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = randomised(nn.Sequential(conv(), Scaled(4)))
    check(model, fold(model, IMAGE), difference, {"1": Reason.NOT_A_MODULE})
    check(model, fold(model), difference, {"1": Reason.AXIS_NOT_PROVEN})


def test_batchnorm_that_adds_what_it_was_given(randomised, fold, difference):
    class Residual(nn.BatchNorm2d):
        def forward(self, x, shortcut=None):
            return super().forward(x) if shortcut is None else super().forward(x) + shortcut

    class Model(Pair):
        def __init__(self):
            super().__init__()
            self.bn = Residual(4)

        def forward(self, x):
            return self.bn(self.conv(x), shortcut=x)

    model = randomised(Model())
    check(model, fold(model, IMAGE), difference, {"bn": Reason.NOT_A_MODULE})


def test_batchnorm_that_is_called_with_more_than_its_input(randomised, fold, difference):
    class Modal(nn.BatchNorm2d):
        def forward(self, x, mode="plain"):
            return super().forward(x)

    class Model(Pair):
        def __init__(self):
            super().__init__()
            self.bn = Modal(4)

        def forward(self, x):
            return self.bn(self.conv(x), mode="plain")

    model = randomised(Model())
    check(model, fold(model, IMAGE), difference, {"bn": Reason.NOT_A_MODULE})


def test_batchnorm_that_changes_its_input_first(randomised, fold_both, difference):
    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            x = x + 1
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    model = randomised(nn.Sequential(conv(), Shifted(4)))
    outcome = fold_both(model)
    assert list(outcome.kept) == ["1"]
    assert difference(model, outcome.model, IMAGE) == 0


def test_batchnorm_that_counts_its_calls(randomised, fold, difference):
    class Counting(nn.BatchNorm2d):
        def forward(self, x):
            self.num_batches_tracked.add_(1)
            return super().forward(x)

    model = randomised(nn.Sequential(conv(), Counting(4)))
    outcome = fold(model, IMAGE)
    assert outcome.kept == {"1": Reason.NOT_A_MODULE}


def test_batchnorm_by_hand(randomised, fold, difference):
    class ByHand(nn.BatchNorm2d):
        def forward(self, x):
            mean, scale = self.running_mean[:, None, None], self.weight[:, None, None]
            return (x - mean) * scale

    model = randomised(nn.Sequential(conv(), ByHand(4)))
    check(model, fold(model, IMAGE), difference, {"1": Reason.NOT_A_MODULE})


def test_batchnorm_that_a_list_holds_too(randomised, fold, difference):
    class Listed(Pair):
        def __init__(self):
            super().__init__()
            self.norms = [self.bn]

        def forward(self, x):
            return self.norms[0](self.conv(x))

    model = randomised(Listed())
    check(model, fold(model, IMAGE), difference, {"bn": Reason.NOT_A_MODULE})


# --- training -------------------------------------------------------------------------------------------


def test_half_evaluated_model(randomised, fold_both):
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4)))
    model[1].train()
    model.training = True
    outcome = fold_both(model)
    assert outcome.folded == {"4": "3"}
    assert outcome.kept == {"1": Reason.TRAINING_MODE}
    assert outcome.model[1].training
    assert not outcome.model[4].training


def test_without_running_statistics(randomised, fold_both, difference):
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)))
    check(model, fold_both(model), difference, {"1": Reason.TRAINING_MODE})


# --- ranks ----------------------------------------------------------------------------------------------


def test_linear_over_a_sequence_as_long_as_its_channels(randomised, fold_both, difference):
    model, x = randomised(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))), torch.randn(3, 7, 5)
    check(model, fold_both(model, x), difference, {"1": Reason.AXIS_NOT_PROVEN}, x)


def test_convolution_of_one_sample_as_long_as_its_channels(randomised, fold_both, difference):
    model, x = randomised(nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6))), torch.randn(3, 6)
    check(model, fold_both(model, x), difference, {"1": Reason.AXIS_NOT_PROVEN}, x)


def test_missing_inputs_are_named_where_they_would_settle_it(fold, randomised):
    outcome = fold(randomised(nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6))))
    assert outcome.kept == {"1": Reason.AXIS_NOT_PROVEN}
    assert "example inputs" in outcome.details["1"]
    assert "example inputs" in outcome.report.how


# --- modules that never run, or run out of sight ----------------------------------------------------------


def test_module_that_is_never_called(randomised, fold_both, difference):
    class Spare(Pair):
        def __init__(self):
            super().__init__()
            self.spare = nn.BatchNorm2d(4)

    model = randomised(Spare())
    check(model, fold_both(model), difference, {"spare": Reason.NEVER_CALLED})


def test_region_without_gradients_is_part_of_the_module(randomised, fold, difference):
    class Frozen(Pair):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    model = randomised(Frozen())
    check(model, fold(model, IMAGE), difference, {})


def test_branch_of_a_conditional_is_out_of_sight(randomised, fold_program, fold, difference):
    class Branch(Pair):
        def forward(self, x):
            return torch.cond(x.sum() > 0, super().forward, lambda y: y + 0, (x,))

    model = randomised(Branch())
    program = fold_program(torch.export.export(model, (IMAGE,), strict=False))
    assert program.kept == {"bn": Reason.OTHER_SCOPE}
    outcome = fold(model, IMAGE)
    assert outcome.kept == {"bn": Reason.OTHER_SCOPE}
    assert difference(model, outcome.model, IMAGE) == 0
