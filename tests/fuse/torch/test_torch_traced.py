"""Symbolic tracing, which sees no numbers: what it may take for proven, and what is written in place."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.fx
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import nn

from convbn.fuse.frontends.torch.modules.instrument import instrument
from convbn.fuse.frontends.torch.tracing.trace import trace
from convbn.fuse.refusal import Reason

X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Pair(nn.Module):
    """A convolution and a BatchNorm, for forwards that tests give it."""

    def __init__(self, inputs=4, channels=6, norms=(6,)):
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in norms)
        self.head = nn.Conv2d(norms[-1], 3, 1)
        self.shift = nn.Parameter(torch.rand(norms[-1], 1, 1) + 0.5)


# --- in place ---------------------------------------------------------------------------------------------


class Augmented(Pair):
    """``y *= p`` changes what ``z`` is another name for."""

    def forward(self, x):
        y = self.norms[0](x)
        z = y
        y *= self.shift
        return self.head(z)


def test_an_augmented_assignment_writes_to_every_name(randomised, fold, difference):
    model = randomised(Augmented(norms=(4,)))
    outcome = fold(model)
    assert outcome.kept["norms.0"] is Reason.NO_PRODUCER  # forward is a scale that nobody else reads
    assert difference(model, outcome.model, X) < 2e-6
    graph = trace(instrument(copy.deepcopy(model))).find_nodes(op="call_function", target=operator.imul)
    assert len(graph) == 1


def test_an_augmented_assignment_behind_a_batchnorm_does_not_write_to_the_shortcut(
    randomised, fold, difference
):
    class Shortcut(Pair):
        def forward(self, x):
            h = self.conv(x)
            y = self.norms[0](h)
            y += self.shift
            return self.head(y) + self.head(h)

    model = randomised(Shortcut())
    outcome = fold(model)
    assert difference(model, outcome.model, X) < 2e-6


def test_an_augmented_assignment_to_a_number_is_none_to_a_tensor(randomised, fold, difference):
    class Counting(Pair):
        def forward(self, x):
            y = self.norms[0](self.conv(x))
            size = y.size(0)
            size += 1
            return y.expand(size - 1, -1, -1, -1)

    model = randomised(Counting())
    outcome = fold(model)
    assert outcome.folded == {"norms.0": "conv"}
    assert difference(model, outcome.model, X) < 2e-6


@torch.fx.wrap
def into_the_second(first, second):
    """Somebody's own function, which FX does not look into."""
    second.mul_(2)
    return first + 1


def test_a_function_of_somebody_may_write_to_all_that_it_is_given(randomised, fold, difference):
    class Wrapped(Pair):
        def forward(self, x):
            y = self.conv(x)
            z = into_the_second(x, y)
            return self.norms[0](y).sum() + z

    model = randomised(Wrapped())
    outcome = fold(model)
    assert set(outcome.kept) == {"norms.0"}
    assert difference(model, outcome.model, X.clone()) == 0


def test_a_result_that_is_written_into_a_given_tensor(randomised, fold, difference):
    class Out(Pair):
        def forward(self, x):
            y = self.conv(x)
            torch.tanh(x[:, :1], out=y)
            return self.norms[0](y)

    model = randomised(Out(channels=1, norms=(1,)))
    outcome = fold(model)
    assert set(outcome.kept) == {"norms.0"}
    assert difference(model, outcome.model, X) == 0


# --- shapes -----------------------------------------------------------------------------------------------


class Shuffled(nn.Conv2d):
    """A convolution by class, whose own forward gives another number of channels."""

    def forward(self, x):
        return F.pixel_shuffle(super().forward(x), 2)


def test_a_layer_with_a_forward_of_its_own_may_give_any_shape(randomised, fold, difference):
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = Shuffled(4, 16, 1), nn.BatchNorm2d(4), nn.Conv2d(2, 3, 1)

        def forward(self, x):
            return self.head(self.norm(self.conv(x)).narrow(1, -3, 2))

    model = randomised(Sliced())
    assert fold(model).folded == {"norm": "head"}  # the BatchNorm says how many channels there are
    assert difference(model, fold(model).model, X) < 2e-6


@pytest.mark.parametrize("claimed", [4, 8])
def test_what_such_a_layer_gives_is_not_split(claimed, randomised, fold, difference):
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = Shuffled(4, claimed, 1), nn.BatchNorm2d(1)

        def forward(self, x):
            torch._assert(x.ndim == 4, "a batch of images")
            return self.norm(self.conv(x).relu().narrow(1, -1, 1))

    model = randomised(Sliced())
    outcome = fold(model)
    assert outcome.kept == {"norm": Reason.AXIS_NOT_PROVEN}
    assert "narrow" in outcome.details["norm"]
    assert difference(model, outcome.model, X) == 0


def test_a_batchnorm_tells_how_many_channels_there_are(randomised, fold, difference):
    """Behind a layer that gives any shape; a slice from behind needs the number."""

    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.first, self.norm = Shuffled(4, 16, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.norm(self.first(self.conv(x)).narrow(1, -3, 2))

    model = randomised(Sliced())
    outcome = fold(model)
    assert outcome.folded == {"first": "norm"}
    assert difference(model, outcome.model, X) < 2e-6


@pytest.mark.parametrize("pool", [lambda y: F.max_pool2d(y, 2), lambda y: F.adaptive_avg_pool2d(y, (4, 5))])
def test_a_pool_of_one_sample_changes_its_second_axis(pool, randomised, fold, difference):
    """Rank 3 in a pool over images is one image without a batch: rows stand where a batch has its channels."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(4, 8, 1), nn.BatchNorm1d(4), nn.Conv1d(2, 3, 1)

        def forward(self, x):
            torch._assert(x.ndim == 4, "a batch of images")
            y = self.norm(pool(self.conv(x).flatten(2)))
            return self.head(y.narrow(1, -3, 2))

    model = randomised(Rows())
    outcome = fold(model)
    assert set(outcome.kept) == {"norm"}
    assert difference(model, outcome.model, X) == 0


def rank_by(check):
    class Checked(Pair):
        def forward(self, x):
            check(x)
            return self.norms[0](self.conv(x).mean((2, 3), keepdim=True))

    return Checked()


@pytest.mark.parametrize(
    ("check", "proven"),
    [
        (lambda x: torch._assert(x.ndim == 4, "rank"), True),
        (lambda x: torch._assert(x.ndim > 3, "rank"), False),
        (lambda x: torch._assert(x.dim() == 4, "rank"), False),
        (lambda x: torch._assert(x.itemsize == 4, "dtype"), False),
        (lambda x: torch._assert(True, "nothing"), False),
    ],
    ids=["equal", "more", "method", "other", "constant"],
)
def test_assertions_that_prove_a_rank(check, proven, randomised, fold, difference):
    model = randomised(rank_by(check))
    outcome = fold(model)
    assert outcome.folded == ({"norms.0": "conv"} if proven else {})
    assert difference(model, outcome.model, X) < 2e-6


def test_an_assertion_that_no_layer_can_meet(randomised, fold):
    """A convolution of images has no data of rank 5: nothing is said of what it gives."""
    model = randomised(rank_by(lambda x: torch._assert(x.ndim == 5, "videos")))
    assert fold(model).kept == {"norms.0": Reason.PRODUCER_NOT_LINEAR}


@pytest.mark.parametrize(
    ("join", "folds"),
    [
        (lambda a, b: torch.cat((a, b), 1), True),
        (lambda a, b: torch.cat((a, b), axis=-3), True),
        (lambda a, b: torch.cat((a, b), a.dim() - 3), False),
        (lambda a, b: torch.cat(torch.cat((a, b), 1).split(4, 1), 1), False),
        (lambda a, b: torch.cat((a, b), 1, out=torch.empty(0)), False),
    ],
    ids=["number", "from-behind", "computed", "pieces", "out"],
)
def test_concatenations(join, folds, randomised, fold, difference):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            torch._assert(x.ndim == 4, "a batch of images")
            return self.norm(join(self.a(x), self.b(x)))

    model = randomised(Joined())
    outcome = fold(model)
    assert outcome.folded == ({"norm": "a, b"} if folds else {})
    assert difference(model, outcome.model, X) < 2e-6


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.reshape(2, 6, 6, 6),
        lambda y: torch.mul(torch.mul(y, 2), 1, out=None),
        lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
        lambda y: F.max_pool2d(y, 2, 2, 0, 1, False, True)[0],
        lambda y: F.dropout(y, 0.5, False),
        lambda y: y.detach(),
    ],
    ids=["method", "no-out", "indices", "indices-in-order", "dropout", "detach"],
)
def test_calls_are_what_their_arguments_say(between, randomised, fold, difference):
    class Called(Pair):
        def forward(self, x):
            torch._assert(x.ndim == 4, "a batch of images")
            return self.norms[0](between(self.conv(x)))

    model = randomised(Called())
    outcome = fold(model)
    assert difference(model, outcome.model, X) < 2e-6


@pytest.mark.parametrize(
    "module", [nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.PReLU(), nn.Flatten(2), nn.GLU(1)]
)
@pytest.mark.parametrize("patched", [False, True])
def test_modules_are_what_their_class_says_unless_it_is_changed(
    module, patched, randomised, fold, difference
):
    rank = 1 if isinstance(module, nn.Flatten) else 2
    channels = 3 if isinstance(module, nn.GLU) else 6

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.between = nn.Conv2d(4, 6, 1), module
            self.norm = (nn.BatchNorm1d if rank == 1 else nn.BatchNorm2d)(channels)

        def forward(self, x):
            torch._assert(x.ndim == 4, "a batch of images")
            return self.norm(self.between(self.conv(x)))

    model = randomised(Called())
    model.norm.weight.data.abs_()
    plain = model.between.forward
    if patched:
        model.between.forward = lambda y: plain(y) * 2
    outcome = fold(model)
    folds = not patched and isinstance(module, nn.Upsample | nn.MaxPool2d)
    model.between.__dict__.pop("forward", None)
    if not patched:
        assert difference(model, outcome.model, X) < 2e-6
    assert (outcome.folded == {"norm": "conv"}) is folds, outcome.details


def test_an_operator_called_by_its_aten_name_says_what_it_shares(randomised, fold, difference):
    """A sigmoid gives a tensor of its own: what is written to that is not written to the BatchNorm's."""

    class Called(Pair):
        def forward(self, x):
            y = self.norms[0](self.conv(x))
            gate = torch.ops.aten.sigmoid.default(y)
            gate.mul_(2)
            return self.head(y * gate)

    model = randomised(Called())
    outcome = fold(model)
    assert outcome.folded == {"norms.0": "conv"}
    assert difference(model, outcome.model, X) < 2e-6


class Activated(nn.Module):
    """A BatchNorm that can be traced through: it does not look at the rank."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return torch.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias))


class Deciding(nn.BatchNorm2d):
    """A BatchNorm that cannot."""

    def forward(self, x):
        return super().forward(x if bool(torch.isfinite(x).all()) else x.nan_to_num())


def test_a_batchnorm_that_cannot_be_traced_stays_whole(randomised, fold, difference):
    model = randomised(
        nn.Sequential(nn.Conv2d(4, 6, 1), Activated(6), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), Deciding(6))
    )
    graph = trace(instrument(copy.deepcopy(model)))
    leaves = {str(node.target) for node in graph.find_nodes(op="call_module", target="4")}
    assert leaves == {"4"}
    assert not graph.find_nodes(op="call_module", target="1")
    outcome = fold(model)
    assert outcome.folded == {"3": "2"}
    assert outcome.kept["4"] is Reason.NOT_A_MODULE
    assert difference(model, outcome.model, X) < 2e-6
