"""How a module is captured where its code cannot be, BatchNorms of other classes, and folding in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import convbn
from convbn.errors import BadInputError, UsageError
from convbn.fuse.frontends.torch.modules import custom_batchnorms as registered
from convbn.fuse.refusal import Reason

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


class Branching(nn.Module):
    """Its way depends on its data, so only a run can be captured."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        y = self.bn(self.conv(x))
        return y * 2 if bool(y.sum() > 0) else y - 1


def test_recorded_run_where_neither_export_nor_tracing_can(randomised, fold, difference):
    model = randomised(Branching())
    outcome = fold(model, X)
    assert outcome.folded == {"bn": "conv"}
    assert outcome.report.how.startswith("Recorded from one run")
    assert "nothing is known of the ways that this run did not take" in outcome.report.how
    assert model.calls.item() == outcome.model.calls.item() == 0
    assert difference(model, outcome.model, X) < 2e-6
    assert difference(model, outcome.model, -X) < 2e-6


def test_recorded_value_that_decides_is_not_moved(randomised, fold, difference):
    class Deciding(Branching):
        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) if bool(y.sum() > 0) else y

    model = randomised(Deciding())
    outcome = fold(model, X)
    assert set(outcome.kept) == {"bn"}
    assert difference(model, outcome.model, X) == 0


def test_run_that_hands_numbers_to_other_code_is_not_recorded(randomised, fold):
    class Leaving(Branching):
        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) * float(y.numpy().mean()) if bool(y.sum() > 0) else y

    with pytest.raises(BadInputError, match=r"recorded.*outside PyTorch"):
        fold(randomised(Leaving()), X)


@pytest.mark.parametrize(
    "use",
    [
        lambda y, x: y * x.abs().max().item(),
        lambda y, x: y + float(x.abs().max()),
        lambda y, x: y * torch.tensor([float(v) for v in x.flatten()[:4]])[:, None, None],
        lambda y, x: torch.cat([y, -y], 1)[:, int(x.abs().max()) : int(x.abs().max()) + 4],
    ],
    ids=["factor", "summand", "tensor", "slice"],
)
def test_a_number_that_a_run_takes_from_its_data_is_no_constant(use, randomised, fold, difference):
    class Taking(Branching):
        def forward(self, x):
            y = self.bn(use(self.conv(x), x))
            return y if bool(x.sum() < 1e9) else -y

    model = randomised(Taking())
    outcome = fold(model, X)
    assert outcome.report.how.startswith("Recorded")
    assert difference(model, outcome.model, 3 * X) < 2e-6
    assert set(outcome.kept) == {"bn"}


def test_code_that_reaches_back_to_the_original_is_not_taken_for_its_copys(randomised, fold, difference):
    class Back(Branching):
        def __init__(self):
            super().__init__()
            self.convolved = lambda x: self.conv(x)

        def forward(self, x):
            y = self.bn(self.convolved(x))
            return y if bool(x.sum() < 1e9) else -y

    model = randomised(Back())
    outcome = fold(model, X)
    assert outcome.report.how.startswith("Recorded")
    assert set(outcome.kept) == {"bn"}
    assert difference(model, outcome.model, X) == 0


def test_recorded_in_place_activation_keeps_the_shortcut(randomised, fold, difference):
    class Shortcut(Branching):
        def __init__(self):
            super().__init__()
            self.act, self.head = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
            self.bn.weight.data.abs_()

        def forward(self, x):
            h = self.conv(x)
            y = self.head(self.act(self.bn(h))) + h
            return y if bool(y.sum() > 0) else -y

    model = randomised(Shortcut())
    outcome = fold(model, X)
    assert outcome.report.how.startswith("Recorded")
    assert difference(model, outcome.model, X) < 2e-6


def test_tracing_steps_in_where_export_fails(randomised, fold, difference):
    class NoExport(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.bn(self.conv(x))
            return y[y > 0].tolist() if torch.compiler.is_exporting() else y

    model = randomised(NoExport())
    outcome = fold(model, X)
    assert outcome.folded == {"bn": "conv"}
    assert "symbolic tracing" in outcome.report.how
    assert "torch.export could not" in outcome.report.how
    assert difference(model, outcome.model, X) < 2e-6


# --- registered classes -----------------------------------------------------------------------------------


class Frozen(nn.Module):
    """A user's BatchNorm: other names, ε in the code, and a forward that no tracer takes."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)
        self.register_buffer("mu", torch.randn(channels))
        self.register_buffer("var", torch.rand(channels) + 0.5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        if not bool(torch.isfinite(x).all()):
            raise ValueError("bad data")
        scale = self.gamma * (self.var + 1e-3).rsqrt()
        return self.relu((x - self.mu[:, None, None]) * scale[:, None, None])


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(registered, "_REGISTERED", {})
    convbn.register_batchnorm(
        Frozen, weight="gamma", bias=None, running_mean="mu", running_var="var", eps=1e-3, then=("relu",)
    )


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("inputs", [(), (X,)], ids=["traced", "exported"])
def test_registered_class_is_folded_and_its_activation_stays(inputs, randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), Frozen(4), nn.Conv2d(4, 4, 3)))
    outcome = fold(model, *inputs)
    if inputs:
        assert outcome.folded == {"1": "0"}
        assert [type(part) for part in outcome.model[1]] == [nn.ReLU]
    else:  # nothing says that the data is of rank 4
        assert outcome.kept == {"1": Reason.AXIS_NOT_PROVEN}
    assert difference(model, outcome.model, X) < 2e-6


@pytest.mark.usefixtures("registry")
def test_registered_class_with_another_forward_is_not_trusted(randomised, fold, difference):
    class Doubled(Frozen):
        def forward(self, x):
            return super().forward(x) * 2

    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), Doubled(4)))
    outcome = fold(model, X)
    assert "1" not in outcome.folded
    assert difference(model, outcome.model, X) < 2e-6


@pytest.mark.usefixtures("registry")
def test_attribute_that_a_registered_class_lacks_is_named(fold):
    convbn.register_batchnorm(Frozen, weight="scale")
    with pytest.raises(UsageError, match=r"'1' \(Frozen\) has no attribute 'scale'"):
        fold(nn.Sequential(nn.Conv2d(3, 4, 1), Frozen(4)), X)


@pytest.mark.usefixtures("registry")
def test_wrong_registration_is_found_by_the_proof():
    convbn.register_batchnorm(
        Frozen, weight=None, bias=None, running_mean="mu", running_var="var", eps=1e-3, then=("relu",)
    )
    with pytest.raises(convbn.CheckFailedError, match="not equal"):
        convbn.fuse(nn.Sequential(nn.Conv2d(3, 4, 1), Frozen(4)).eval(), X)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d(3), 3, dict, nn.BatchNorm2d], ids=str)
def test_what_cannot_be_registered(kind):
    with pytest.raises(UsageError):
        convbn.register_batchnorm(kind)


@pytest.mark.usefixtures("torchvision_names")
def test_frozen_batchnorm_of_torchvision(fold, difference):
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d(4)
    for tensor in norm.buffers():
        tensor.copy_(torch.rand(4) + 0.5)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), norm).eval()
    outcome = fold(model, X)
    assert outcome.folded == {"1": "0"}
    assert difference(model, outcome.model, X) < 2e-6


# --- in place ---------------------------------------------------------------------------------------------


def test_fold_in_place_keeps_every_object(randomised):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    with torch.no_grad():
        expected = model(X)
    conv, weight = model[0], model[0].weight
    result = convbn.fuse(model, X, inplace=True)
    assert result.model is model
    assert model[0] is conv
    assert conv.weight is weight
    assert conv.bias is not None
    assert isinstance(model[1], nn.Identity)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    with torch.no_grad():
        assert torch.allclose(model(X), expected, atol=1e-5)


def test_fold_in_place_reaches_into_a_wrapper(randomised):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    wrapped = nn.DataParallel(model)
    assert convbn.fuse(wrapped, X, inplace=True).model is wrapped
    assert isinstance(model[1], nn.Identity)


def test_fold_in_place_under_every_name_of_a_module(randomised):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.alias, self.head = self.bn, self.conv

        def forward(self, x):
            return self.alias(self.head(x))

    model = randomised(Two())
    convbn.fuse(model, X, inplace=True)
    assert isinstance(model.bn, nn.Identity)
    assert model.alias is model.bn
    assert model.head is model.conv


def test_failed_proof_leaves_the_module_alone(randomised, monkeypatch):
    from convbn.fuse.plan import planner

    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = planner.make_plan

    def spoilt(*args, **kwargs):
        made = plan(*args, **kwargs)
        made.edits[:] = made.edits[-1:]  # the BatchNorm goes, and nobody takes it in
        return made

    monkeypatch.setattr("convbn.fuse.fold.make_plan", spoilt)
    with pytest.raises(convbn.CheckFailedError):
        convbn.fuse(model, X, inplace=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_modules_are_folded_in_place(randomised):
    program = torch.export.export(randomised(nn.Sequential(nn.Conv2d(3, 4, 1))), (X,), strict=False)
    with pytest.raises(UsageError, match="in place"):
        convbn.fuse(program, inplace=True)
