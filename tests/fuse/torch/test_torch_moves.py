"""Maps that move in every direction: in a module by its parameters alone, in a program also by new structure."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import nn

from convbn.fuse.refusal import Reason

X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Preactivation(nn.Module):
    """A stem and two pre-activation blocks: ``h' = h + conv(relu(bn(h)))``."""

    def __init__(self, in_place=True):
        super().__init__()
        self.stem = nn.Conv2d(4, 6, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.act = nn.ReLU(inplace=in_place)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        h = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            h = h + conv(self.act(norm(h)))
        return self.head(self.act(self.norms[2](h)))


def positive(model):
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.abs_().add_(0.1)
    return model


def exported(model, x=X):
    return torch.export.export(model, (x,), strict=False)


def test_residual_stream_gives_up_every_batchnorm_in_both_forms(randomised, fold, fold_program, difference):
    model = positive(randomised(Preactivation()))
    for outcome in (fold(model, X), fold(model)):
        assert set(outcome.folded) == {"norms.0", "norms.1", "norms.2"}
        assert type(outcome.model) is Preactivation
        assert difference(model, outcome.model, X) < 2e-6
    program = fold_program(exported(model))
    assert len(program.folded) == 3
    assert difference(model, program.model.module(), X) < 2e-6


def test_in_place_activation_does_not_overwrite_the_shortcut(randomised, fold):
    model = positive(randomised(Preactivation(in_place=True)))
    outcome = fold(model, X)
    assert not outcome.model.act.inplace
    assert model.act.inplace


def test_in_place_call_that_cannot_be_told_otherwise_keeps_the_batchnorm(randomised, fold, difference):
    class Functional(Preactivation):
        def forward(self, x):
            h = self.stem(x)
            h = h + self.convs[0](F.relu_(self.norms[0](h)))
            return self.head(h)

    model = positive(randomised(Functional()))
    for outcome in (fold(model, X), fold(model)):
        assert outcome.kept["norms.0"] is Reason.SEVERAL_READERS
        assert "in place" in outcome.details["norms.0"] or "also read" in outcome.details["norms.0"]
        assert difference(model, outcome.model, X) < 2e-6


@pytest.mark.parametrize("form", ["module", "traced", "program"])
def test_in_place_sum_is_read_by_whoever_reads_it_later(form, randomised, fold, fold_program, difference):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            y += 1
            z = self.bn(y)
            y.mul_(2)
            return z, y

    model = randomised(InPlace())
    if form == "program":
        outcome = fold_program(exported(model))
        assert difference(model, outcome.model.module(), X) < 2e-6
    else:
        outcome = fold(model, X) if form == "module" else fold(model)
        assert difference(model, outcome.model, X) < 2e-6
    assert outcome.kept  # the sum is an output as well, times two


@pytest.mark.parametrize("form", ["module", "program"])
def test_another_name_of_a_tensor_shows_what_is_written_to_it(
    form, randomised, fold, fold_program, difference
):
    class Names(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            z = y.detach()
            y.relu_()
            return self.bn(z)

    model = randomised(Names())
    outcome = fold(model, X) if form == "module" else fold_program(exported(model))
    found = outcome.model if form == "module" else outcome.model.module()
    assert outcome.kept
    assert difference(model, found, X) < 2e-6


def test_write_through_a_view_is_not_followed(randomised, fold, fold_program, difference):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            y[:, :1].relu_()
            return self.bn(y)

    model = randomised(Views())
    for outcome in (fold(model, X), fold(model)):
        assert set(outcome.kept) == {"bn"}
        assert difference(model, outcome.model, X) == 0
    program = fold_program(exported(model))
    assert difference(model, program.model.module(), X) < 2e-6


@pytest.mark.parametrize("padded", [False, True])
def test_batchnorm_in_front_of_a_convolution(padded, randomised, fold, fold_program, difference):
    model = randomised(
        nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=int(padded)))
    )
    outcomes = [fold(model, X), fold(model), fold_program(exported(model))]
    for outcome in outcomes:
        found = outcome.model if isinstance(outcome.model, nn.Module) else outcome.model.module()
        assert difference(model, found, X) < 2e-6
        if padded:
            assert set(outcome.kept) == {"1"}
        else:
            assert outcome.folded == {"1": "2"}


def test_branches_of_a_concatenation_take_their_parts(randomised, fold, fold_program, difference):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 6, 3, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(8)

        def forward(self, x):
            return self.bn(torch.cat([self.one(x), self.two(x)], 1))

    model = randomised(Branches())
    for outcome in (fold(model, X), fold(model)):
        assert outcome.folded == {"bn": "one, two"}
        assert difference(model, outcome.model, X) < 2e-6
    assert fold_program(exported(model)).folded == {"bn": "one, two"}


@pytest.mark.parametrize(
    ("between", "size"),
    [
        (nn.AvgPool2d(2), 4),
        (nn.AdaptiveAvgPool2d(2), 4),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 4),
        (nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (6, 6))), 4),
        (nn.Identity(), 4),
        (nn.ReflectionPad2d(1), 4),
    ],
    ids=str,
)
def test_batchnorm_passes_what_lies_between(between, size, randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.Conv2d(4, size, 1), between, nn.BatchNorm2d(size)))
    outcome = fold(model, X)
    assert outcome.folded == {"2": "0"}
    assert difference(model, outcome.model, X) < 2e-6
    program = fold_program(exported(model))
    assert program.folded == {"2": "0"}
    assert difference(model, program.model.module(), X) < 2e-6


def test_counted_padding_and_maximum_let_less_through(randomised, fold, difference):
    for pool in (nn.AvgPool2d(3, padding=1), nn.MaxPool2d(2)):
        model = randomised(nn.Sequential(nn.Conv2d(4, 4, 1), pool, nn.BatchNorm2d(4)))
        model[2].weight.data[0] = -1
        for outcome in (fold(model, X), fold(model)):
            assert outcome.kept["2"] in (Reason.SHIFT_INTO_PADDING, Reason.NEGATIVE_SCALE)
            assert difference(model, outcome.model, X) == 0


def test_layer_scale_that_is_reshaped_takes_the_map_in_its_own_shape(randomised, fold, difference):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(4) + 0.5)
            self.beta = nn.Parameter(torch.randn(4, 1, 1))
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(torch.sigmoid(x) * self.gamma.view(1, -1, 1, 1) + self.beta)

    model = randomised(Scaled())
    outcome = fold(model, X)
    assert outcome.folded == {"bn": "mul, add"} or not outcome.kept
    assert outcome.model.gamma.shape == (4,)
    assert outcome.model.beta.shape == (4, 1, 1)
    assert difference(model, outcome.model, X) < 2e-6


def test_layer_scale_that_is_used_twice_stays(randomised, fold, difference):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(4) + 0.5)
            self.bn = nn.BatchNorm2d(4, affine=False)

        def forward(self, x):
            y = torch.sigmoid(x) * self.gamma.view(1, -1, 1, 1)
            return self.bn(y) + torch.tanh(self.gamma.view(4, 1, 1))

    model = randomised(Scaled())
    outcome = fold(model, X)
    assert set(outcome.kept) == {"bn"}
    assert difference(model, outcome.model, X) == 0


def test_bias_on_trial_of_a_convolution_called_twice_is_not_added(randomised, fold, difference):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, bias=False)
            self.bn = nn.BatchNorm2d(4, eps=0.0, affine=False)

        def forward(self, x):
            return self.bn(self.conv(x)) + self.conv(x).sigmoid()

    model = randomised(Twice())
    model.bn.running_var.fill_(1)  # nothing but a shift, which the shared weight would not take part in
    for outcome in (fold(model, X), fold(model)):
        assert set(outcome.kept) == {"bn"}
        assert difference(model, outcome.model, X) == 0


def test_hook_on_a_value_that_a_map_would_pass(randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(2), nn.Identity(), nn.BatchNorm2d(4)))
    model[0].register_forward_hook(lambda *_: None)
    for outcome in (fold(model, X), fold(model)):
        assert outcome.kept == {"3": Reason.OBSERVED}
        assert "a hook of '0'" in outcome.details["3"]
        assert difference(model, outcome.model, X) == 0


# --- what only a graph can take ---------------------------------------------------------------------------


class Branched(nn.Module):
    """RepVGG's block: 3×3, 1×1 and identity, each with its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norms[0](self.wide(x)) + self.norms[1](self.narrow(x))
        return self.act(y + self.norms[2](x))


@pytest.mark.parametrize("lowered", [False, True])
def test_branches_become_one_convolution_in_a_program(lowered, randomised, fold_program, difference):
    model = randomised(Branched())
    program = exported(model)
    outcome = fold_program(program.run_decompositions() if lowered else program)
    calls = [str(node.target) for node in outcome.model.graph.nodes if node.op == "call_function"]
    assert calls == [f"aten.{'convolution' if lowered else 'conv2d'}.default", "aten.relu.default"]
    assert set(outcome.model.state_dict) == {"wide.weight", "wide.bias"}
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_branches_stay_apart_in_a_module(randomised, fold, difference):
    model = randomised(Branched())
    outcome = fold(model, X)
    assert difference(model, outcome.model, X) < 2e-6
    assert not outcome.kept
    assert {type(norm) for norm in outcome.model.norms} == {nn.Identity}
    assert [type(part) for part in outcome.model.modules()].count(nn.Conv2d) == 2


def test_numbers_in_the_code_go_into_the_batchnorm_of_a_program(randomised, fold, fold_program, difference):
    class Number(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(torch.sigmoid(x) * 3 + 1).tanh()

    model = randomised(Number())
    outcome = fold_program(exported(model))
    calls = [node.name for node in outcome.model.graph.nodes if node.op == "call_function"]
    assert calls == ["sigmoid", "mul", "add", "tanh"]  # the numbers are the BatchNorm's now
    assert difference(model, outcome.model.module(), X) < 2e-6
    module = fold(model, X)
    assert module.kept == {"bn": Reason.NOT_A_MODULE}
    assert difference(model, module.model, X) == 0


def test_number_in_the_code_becomes_a_tensor_in_a_program(randomised, fold_program, difference):
    class Number(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=0.0, affine=False)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y), torch.tanh(2 - y)

    model = randomised(Number())
    model.bn.running_var.fill_(1)  # a shift alone, which the number takes back for the other reader
    outcome = fold_program(exported(model))
    assert not outcome.kept
    assert [name for name in outcome.model.state_dict if "folded" in name]
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_frozen_batchnorm_by_hand_is_a_constant_map_in_a_program(randomised, fold_program, difference):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, bias=False)
            self.register_buffer("mean", torch.randn(4))
            self.register_buffer("variance", torch.rand(4) + 0.5)

        def forward(self, x):
            scale = (self.variance + 1e-5).rsqrt().reshape(1, -1, 1, 1)
            return self.conv(x) * scale - self.mean.reshape(1, -1, 1, 1) * scale

    model = Frozen().eval()
    outcome = fold_program(exported(model))
    assert len(outcome.model.graph.nodes) == 5  # two tensors, the input, one convolution, the output
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_shift_stays_as_an_addition_where_there_is_no_place_for_a_bias(randomised, fold_program, difference):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 5))
            self.gate = nn.Linear(4, 5)
            self.bn = nn.BatchNorm1d(5)

        def forward(self, x):
            return self.bn((x @ self.weight * self.gate(x).sigmoid()).transpose(1, 2)).tanh()

    model, x = randomised(Product()), torch.randn(2, 3, 4)
    for program in (exported(model, x), exported(model, x).run_decompositions({})):
        outcome = fold_program(program)
        assert outcome.report.folded[0].rule == "batchnorm-to-add"
        assert "bn.folded" in outcome.model.state_dict
        assert difference(model, outcome.model.module(), x) < 2e-6


@pytest.mark.parametrize("left", [False, True])
def test_a_product_without_a_bias_gains_an_addition(randomised, fold_program, difference, left):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 4))
            self.bn, self.behind = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
            self.conv = nn.Conv1d(5, 2, 1)

        def forward(self, x):
            y = self.weight @ x if left else (x.transpose(1, 2) @ self.weight.T).transpose(1, 2)
            y = self.bn(y)
            return self.conv(self.behind(y.sigmoid())), y

    model, x = randomised(Product()), torch.randn(2, 4, 3)
    programs = [exported(model, x)]
    # What is decomposed expands a matrix on the left to a batch of them, which is no longer the stored one.
    for program in programs if left else [*programs, programs[0].run_decompositions({})]:
        outcome = fold_program(program)
        assert outcome.report.batchnorm.after == 0
        called = [str(node.target) for node in outcome.model.graph.nodes if node.op == "call_function"]
        assert sum("add.Tensor" in name for name in called) == 1
        assert difference(model, outcome.model.module(), x) < 2e-6


def test_program_that_writes_to_its_input_is_lowered_first(randomised, fold_program):
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x.add_(1)
            return self.bn(self.conv(x))

    model = randomised(Writing())
    outcome = fold_program(exported(model))
    assert list(outcome.folded) == ["bn"]
    first, second = X.clone(), X.clone()
    expected, found = model(first), outcome.model.module()(second)
    assert torch.equal(first, second)
    assert torch.allclose(expected, found, atol=1e-5)


class Attention(nn.Module):
    """One head; a BatchNorm over the channels of what it gives."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.query, self.key, self.value = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 5, bias=False)
        self.bn = nn.BatchNorm1d(5)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.way == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.way == "masked":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(6, 6, dtype=torch.bool).tril())
        else:
            y = torch.softmax(q @ k.transpose(1, 2), dim=-1 if self.way == "rows" else 1) @ v
        return self.bn(y.transpose(1, 2))


@pytest.mark.parametrize("way", ["fused", "masked", "rows", "columns"])
def test_batchnorm_behind_attention_goes_into_the_values(way, randomised, fold, fold_program, difference):
    model, x = randomised(Attention(way)), torch.randn(2, 6, 4)
    for outcome in (fold(model, x), fold_program(exported(model, x))):
        found = outcome.model if isinstance(outcome.model, nn.Module) else outcome.model.module()
        assert difference(model, found, x) < 2e-6
        if way in ("fused", "rows"):
            assert outcome.folded == {"bn": "value"}
        else:  # a mask may leave a row without weights, and columns of a softmax over rows sum to anything
            assert "bn" not in outcome.folded or outcome.report.folded[0].rule == "batchnorm-to-add"


@pytest.mark.parametrize("mode", ["zeros", "ones", "reflect"])
def test_padding_between(mode, randomised, fold, fold_program, difference):
    pad = {"zeros": nn.ZeroPad2d(1), "ones": nn.ConstantPad2d(1, 1.0), "reflect": nn.ReflectionPad2d(1)}[mode]
    model = randomised(nn.Sequential(nn.Conv2d(4, 4, 1), pad, nn.BatchNorm2d(4)))
    for outcome in (fold(model, X), fold_program(exported(model))):
        found = outcome.model if isinstance(outcome.model, nn.Module) else outcome.model.module()
        assert difference(model, found, X) < 2e-6
        assert bool(outcome.folded) is (mode == "reflect")


@pytest.mark.parametrize("norm", [nn.LayerNorm(5), nn.GroupNorm(1, 6)], ids=str)
def test_batchnorm_behind_a_normalisation(norm, randomised, fold, fold_program, difference):
    group = isinstance(norm, nn.GroupNorm)
    model = randomised(nn.Sequential(nn.Tanh(), norm, nn.BatchNorm1d(6 if group else 5)))
    x = torch.randn(3, 6, 5) if group else torch.randn(4, 5)
    for outcome in (fold(model, x), fold_program(exported(model, x))):
        found = outcome.model if isinstance(outcome.model, nn.Module) else outcome.model.module()
        assert outcome.folded == {"2": "1"}
        assert difference(model, found, x) < 2e-6
