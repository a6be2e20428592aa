"""What an edit leaves behind in programs and modules whose parts are unusual, and edits that no plan may ask for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import nn
from torch.export import ExportedProgram

import convbn
from convbn.fuse.frontends.torch.calls.tensors import why_not_constant
from convbn.fuse.frontends.torch.capture.program import capture_program
from convbn.fuse.frontends.torch.edit.program import edit_program
from convbn.fuse.frontends.torch.edit.writing import call_of
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.pad import Pad
from convbn.fuse.refusal import Reason
from convbn.fuse.view.edits import Bypass, SetConstant

X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


def exported(model, x=X):
    return torch.export.export(model, (x,), strict=False)


class Branches(nn.Module):
    """Two convolutions of the same data, summed and normalised."""

    def __init__(self, first, second, of=lambda x: x):
        super().__init__()
        self.first, self.second, self.norm, self.of = first, second, nn.BatchNorm2d(6), of

    def forward(self, x):
        x = self.of(x)
        return self.norm(self.first(x) + self.second(x))


def conv(size, padding, inputs=4, **more):
    return nn.Conv2d(inputs, 6, size, padding=padding, **more)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (conv(1, 0), conv(3, 1), True),
        (conv(3, 1), conv(1, 0), True),
        (conv(3, "valid"), conv(3, 0), True),
        (conv(3, "same"), conv(1, "valid"), True),
        (conv(2, "same"), conv(1, 0), False),
    ],
    ids=["1+3", "3+1", "valid", "same", "same-even"],
)
def test_branches_become_one_where_their_windows_lie_alike(
    first, second, merged, randomised, fold_program, difference
):
    model = randomised(Branches(copy.deepcopy(first), copy.deepcopy(second)))
    outcome = fold_program(exported(model))
    assert bool(outcome.report.merged) is merged
    assert len(outcome.model.state_dict) == (2 if merged else 4)
    assert difference(model, outcome.model.module(), X) < 2e-6


def test_branches_of_a_piece(randomised, fold_program, difference):
    """What the merged convolution reads is one of several results of a node."""
    of_piece = Branches(conv(3, 1, 2), conv(1, 0, 2), lambda x: x.chunk(2, 1)[1])
    model = randomised(of_piece)
    outcome = fold_program(exported(model))
    assert outcome.report.merged
    assert difference(model, outcome.model.module(), X) < 2e-6


class CalledTwice(nn.Module):
    """One convolution without a bias, with a BatchNorm of its own behind each call."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = (
            nn.Conv2d(4, 4, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4),
        )

    def forward(self, x):
        return self.second(self.conv(torch.tanh(self.first(self.conv(x)))))


def test_two_new_tensors_beside_one(randomised, fold_program, difference):
    """Both maps only add, so both biases stand beside the one weight."""
    model = randomised(CalledTwice())
    for norm in (model.first, model.second):
        norm.eps = 0.0
        for part in (norm.running_var.data, norm.weight.data):
            part.fill_(1)
    program = exported(model)
    outcome = fold_program(program)
    assert outcome.report.batchnorm.after == 0
    assert difference(program.module(), outcome.model.module(), X) < 2e-6


def test_an_output_that_is_no_tensor(randomised, fold_program, fold, difference):
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.norm(self.conv(x)), x.shape[0]

    model = randomised(Sized())
    program = torch.export.export(model, (X,), strict=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    outcome = fold_program(program)
    assert outcome.folded == {"norm": "conv"}
    found = outcome.model.module()(X)
    assert found[1] == 2
    assert torch.allclose(found[0], model(X)[0], atol=1e-5)
    assert fold(model).folded == {"norm": "conv"}


def test_a_module_called_like_an_operator(randomised, fold_program, difference):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.add = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.add(torch.add(self.conv(x), x, alpha=2))

    model = randomised(Named())
    outcome = fold_program(exported(model))
    assert set(outcome.kept) == {"add"}
    assert "'add_'" in outcome.details["add"]
    assert difference(model, outcome.model.module(), X) == 0


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y + torch.zeros_like(y).bernoulli_(1.0),
        lambda y: y + torch.zeros_like(y).chunk(2, 1)[0].add_(1).repeat(1, 2, 1, 1),
        lambda y: y + torch.zeros_like(y).squeeze_(0).clamp_(1),
    ],
    ids=["no-functional-form", "one-of-several-views", "view-in-place"],
)
def test_programs_that_write_in_place(write, randomised, fold_program, difference):
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.norm(write(self.conv(x)))

    model = randomised(Writing())
    outcome = fold_program(exported(model))
    assert difference(model, outcome.model.module(), X) < 2e-6


def part(y):
    z = y * 1
    z[..., 0] /= 2
    z[:, 1:] += 1
    return z


def part_of_a_part(y):
    z = y * 1
    z[0][1] += 1
    return z


def parts_at_hand(y):
    z = y * 1
    first, other = z[:, 0], z[:, 1]
    first.add_(1)
    other.mul_(2)
    return z


def part_and_whole(y):
    z = y * 1
    z[:, 0] += 1
    first = z[:, :2]
    z.mul_(2)
    return torch.cat([z, first, first], 1)[:, :6]


def read_before_and_after(y):
    z = y * 1
    first = z[:, 0]
    before = first * 1
    first.add_(1)
    return z + before[:, None] + first[:, None]


def coarser(y):
    z = y.half()
    z[:, 0] += 1
    z.mul_(y)
    return z.float()


@pytest.mark.parametrize(
    ("write", "functional"),
    [
        (part, True),
        (part_of_a_part, False),
        (parts_at_hand, False),
        (part_and_whole, False),
        (read_before_and_after, True),
        (coarser, False),
    ],
)
def test_parts_that_a_program_writes_to(write, functional, randomised, fold_program, difference, monkeypatch):
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            return self.last(write(self.norm(self.conv(x))))

    model = randomised(Writing())
    program = exported(model)
    lowered = []
    monkeypatch.setattr(
        ExportedProgram,
        "run_decompositions",
        lambda self, table, run=ExportedProgram.run_decompositions: lowered.append(1) or run(self, table),
    )
    outcome = fold_program(program)
    assert outcome.folded == {"norm": "conv"}
    assert bool(lowered) is not functional
    assert difference(model, outcome.model.module(), X) < (1e-2 if write is coarser else 2e-6)


# --- edits that no plan asks for --------------------------------------------------------------------------


def test_a_node_without_data_cannot_be_bypassed(randomised):
    program = exported(randomised(nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6))))
    view = capture_program(program).view
    layer = next(node for node in view.nodes if isinstance(node.op, Conv))
    with pytest.raises(ValueError, match="no input to be bypassed to"):
        edit_program(program, program.graph_module, [Bypass(layer, 2)])


def test_a_node_of_no_known_operator_cannot_be_edited(randomised):
    program = exported(randomised(nn.Sequential(nn.Conv2d(4, 6, 1), nn.Tanh())))
    view = capture_program(program).view
    weight = view.nodes[0].inputs[1].constant
    with pytest.raises(ValueError, match="no node that a plan edits"):
        edit_program(program, program.graph_module, [SetConstant(view.nodes[1], 1, weight)])


@pytest.mark.parametrize("op", [Pad("Pad", (2,), zeros=True), Conv(groups=1, window=None)], ids=repr)
def test_what_no_edit_writes(op):
    with pytest.raises(TypeError, match="not written"):
        call_of(op, [], like=None)


# --- tensors whose numbers cannot be set ------------------------------------------------------------------


class Tagged(torch.Tensor):
    """A tensor of a library that computes in its own way."""


@pytest.mark.parametrize(
    ("tensor", "cause"),
    [
        (2.0, "no tensor"),
        (torch.ones(2).as_subclass(Tagged), "a Tagged, not a plain tensor"),
        (torch.ones(2, device="meta"), "on the meta device"),
        (torch.ones(2, dtype=torch.int8), "not as a dense float"),
        (torch.eye(2).to_sparse(), "not as a dense float"),
        (torch.ones(1).expand(2), "expanded"),
    ],
    ids=["number", "subclass", "meta", "integers", "sparse", "expanded"],
)
def test_tensors_that_are_no_constants(tensor, cause):
    refusal = why_not_constant("w", tensor)
    assert refusal.reason is Reason.WEIGHT_NOT_CONSTANT
    assert cause in refusal.detail


def test_a_weight_whose_elements_share_memory_keeps_the_batchnorm(randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)))
    model[0].weight = nn.Parameter(torch.rand(1, 4, 1, 1).expand(6, 4, 1, 1))
    outcome = fold(model)
    assert outcome.kept == {"1": Reason.WEIGHT_NOT_CONSTANT}
    assert difference(model, outcome.model, X) == 0


# --- modules with parts missing ---------------------------------------------------------------------------


@pytest.mark.parametrize("traced", [False, True])
def test_a_batchnorm_with_a_scale_and_no_shift(traced, randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)))
    model[1].register_parameter("bias", None)
    outcome = fold(model) if traced else fold(model, X)
    assert outcome.folded == {"1": "0"}
    assert difference(model, outcome.model, X) < 2e-6


def test_two_batchnorms_of_which_the_first_has_no_shift(randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1)))
    model[1].register_parameter("bias", None)
    outcome = fold(model, X)
    assert set(outcome.kept) == {"1"}
    assert difference(model, outcome.model, X) == 0


def test_other_layers_without_a_bias_are_given_none(randomised, fold):
    model = randomised(
        nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.LayerNorm(6, bias=False))
    )
    outcome = fold(model, X)
    assert outcome.folded == {"1": "0"}
    assert outcome.model[2].bias is None


def test_a_hooked_module_that_gives_several_tensors(randomised, fold, difference):
    class Two(nn.Module):
        def forward(self, x):
            return x, x * 2

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.two = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), Two()

        def forward(self, x):
            first, second = self.two(self.norm(self.conv(x)))
            return first + second

    model = randomised(Both())
    seen = []
    model.two.register_forward_hook(lambda *given: seen.append(given[2][1]))
    outcome = fold(model, X)
    assert outcome.folded == {"norm": "conv"}
    seen.clear()
    assert difference(model, outcome.model, X) < 2e-6
    assert len(seen) == 2
    assert torch.allclose(*seen, atol=1e-5)


class Stepwise(nn.BatchNorm2d):
    """A BatchNorm whose forward calls children: one of them in a way that cannot stay behind alone."""

    def __init__(self, channels, then):
        super().__init__(channels)
        self.act, self.then = nn.Tanh(), then

    def forward(self, x):
        return self.then(self, super().forward(x))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("then", "goes"),
    [
        (lambda norm, y: norm.act(y), True),
        (lambda norm, y: norm.act(norm.act(y)), False),
        (lambda norm, y: norm.act(y) + y, False),
        (lambda norm, y: norm.act(input=y), True),
        (lambda norm, y: F.tanh(y), False),
    ],
    ids=["once", "twice", "added", "by-keyword", "function"],
)
def test_what_a_batchnorm_does_behind_its_normalisation(then, goes, traced, randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(4, 6, 1), Stepwise(6, then)))
    outcome = fold(model) if traced else fold(model, X)
    # Without inputs nothing says that the data is of rank 4: the forward is not the class's own.
    assert set(outcome.folded) == ({"1"} if goes and not traced else set())
    assert difference(model, outcome.model, X) < 2e-6


# --- in place ---------------------------------------------------------------------------------------------


def test_fold_in_place_turns_an_in_place_activation_off(randomised):
    """What it would overwrite is the shortcut, once the BatchNorm is gone."""

    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
            self.conv, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            h = self.stem(x)
            return self.head(h + self.conv(self.act(self.norm(h))))

    model = randomised(Shortcut())
    model.norm.weight.data.abs_()
    with torch.no_grad():
        expected = model(X)
    act = model.act
    result = convbn.fuse(model, X, inplace=True)
    assert not result.report.kept
    assert model.act is act
    assert not act.inplace
    with torch.no_grad():
        assert np.allclose(model(X).numpy(), expected.numpy(), atol=1e-5)
