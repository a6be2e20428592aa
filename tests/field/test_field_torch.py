"""The PyTorch trials of the report: what a tool leaves, and what they must not count as good."""

from __future__ import annotations

from typing import Any

import pytest
from coverage_report.summary import WRONG_ABOVE
from coverage_report.torch_counts import batchnorm_nodes, error_between, passes, tried
from coverage_report.torch_summary import summarise_torch
from coverage_report.torch_trial import TRIALS, stages
from coverage_report.trained import as_trained

torch = pytest.importorskip("torch")
nn = torch.nn
NAME = "tv_squeezenet1_1"


class Residual(nn.Module):
    """Two BatchNorms behind convolutions, and one between a sum that is read twice and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.sum = nn.BatchNorm2d(8)
        self.unused = nn.BatchNorm2d(8)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        x = x + self.second(x)
        return {"sum": x, "out": self.sum(x).tanh()}


class Deciding(nn.Module):
    """A forward that decides by numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x))
        return y if bool(y.sum() > -1e9) else -y


def trials_of(module: Any) -> dict[str, dict[str, Any]]:
    inputs = [torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    torch.manual_seed(0)
    return dict(stages(as_trained(module, inputs[0], 0), inputs))


def test_what_each_tool_leaves_is_counted_by_what_runs() -> None:
    found = trials_of(Residual())
    assert (found["network"]["bn_modules"], found["network"]["called"]) == (4, 3)
    assert found["network"]["batchnorms"] == found["graph"]["before"] == 3
    assert (found["module"]["left"], found["graph"]["left"], found["fx"]["left"]) == (1, 1, 1)
    assert found["module"]["left_modules"] == 1
    for form in ("module", "graph"):
        assert found[form]["failure"] is None
        assert not found[form]["disagrees"]
        assert found[form]["class_kept"]
        assert 0 < found[form]["error"] < 1e-6
        assert found[form]["kept"]
    assert not found["fx"]["class_kept"]
    assert found["fx"]["error"] < 1e-6


def test_a_forward_that_decides_by_numbers_fails_in_torch_fx_only() -> None:
    found = trials_of(Deciding())
    assert found["fx"]["failure"].startswith("TraceError")
    assert found["graph"]["not_exported"]
    assert (found["module"]["failure"], found["module"]["left"]) == (None, 0)
    totals = summarise_torch({NAME: {"name": NAME, "seconds": 1.0, **found}})["totals"]
    assert (totals["fx"]["left"], totals["fx"]["failed"]) == (1, 1)
    assert (totals["graph"]["models"], totals["graph"]["not_exported"], totals["graph"]["failed"]) == (
        0,
        1,
        0,
    )


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_fold_that_is_wrong_or_raises_is_found(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import convbn

    fold = convbn.fuse

    def off(model: Any, *given: Any, **options: Any) -> Any:
        result = fold(model, *given, **options)
        if isinstance(model, nn.Module) == (form == "module"):
            with torch.no_grad():
                dict(result.model.named_parameters())["first.0.bias"].add_(4 * WRONG_ABOVE)
        return result

    def no(model: Any, *given: Any, **options: Any) -> Any:
        raise MemoryError if isinstance(model, nn.Module) == (form == "module") else ValueError("no")

    monkeypatch.setattr(convbn, "fuse", off)
    other = "graph" if form == "module" else "module"
    summary = summarise_torch({NAME: {"name": NAME, "seconds": 1.0, **trials_of(Residual())}})
    assert (summary["totals"][form]["wrong"], summary["totals"][other]["wrong"]) == (1, 0)
    assert not summary["clean"]
    monkeypatch.setattr(convbn, "fuse", no)
    found = trials_of(Residual())
    assert (found[form]["failure"], found[other]["failure"]) == ("MemoryError", "ValueError: no")
    assert found["fx"]["failure"] is None


def test_a_tool_that_changes_the_original_is_found() -> None:
    found = {}

    def careless(module: Any, inputs: Any, plain: Any) -> dict[str, Any]:
        with torch.no_grad():
            module.first[0].weight.mul_(1.001)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRIALS, "fx", careless)
        found = trials_of(Residual())
    assert [found[name]["original_changed"] for name in TRIALS] == [False, False, True]


def test_passes_count_calls_and_each_module_once() -> None:
    bn = nn.BatchNorm1d(2).eval()
    twice = passes(nn.Sequential(bn, bn), [torch.ones(1, 2), torch.ones(1, 2)])
    assert (twice.calls, twice.modules, len(twice.outputs)) == (2, 1, 2)
    assert not bn._forward_pre_hooks
    frozen = passes(nn.Sequential(nn.InstanceNorm1d(2), nn.LayerNorm(3)), [torch.ones(1, 2, 3)])
    assert frozen.modules == 0


def test_outputs_that_are_missing_or_no_numbers_have_no_error() -> None:
    x = [torch.ones(1, 2)]
    good = passes(nn.Identity(), x)
    assert error_between(good, good) == 0
    broken = tried(nn.Linear(3, 3), x)
    assert broken.broken is not None
    assert broken.broken.startswith("RuntimeError: mat1 and mat2")
    assert error_between(good, broken) is None
    assert error_between(good, passes(nn.Linear(2, 3), x)) is None
    nothing = passes(nn.Sequential(nn.Threshold(2.0, float("nan"))), x)
    assert nothing.broken == "its outputs hold Inf or NaN"
    assert error_between(good, nothing) is None


def test_batchnorms_in_branches_of_a_program_count() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: Any) -> Any:
            x = self.bn(x)
            return torch.cond(x.sum() > 0, lambda v: self.bn(v), lambda v: v.sin(), (x,))

    program = torch.export.export(Choosing().eval(), (torch.ones(3, 2),), strict=False)
    assert batchnorm_nodes(program.graph_module) == 2
