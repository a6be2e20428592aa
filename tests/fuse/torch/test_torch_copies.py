"""What a capture leaves out to be quick: detours of ``copy.deepcopy``, markers in known layers, lines of code."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.snapshot import snapshot
from torch import nn
from torch.fx import config

import convbn
from convbn.errors import BadInputError
from convbn.fuse.frontends.torch.calls.schema import is_marker
from convbn.fuse.frontends.torch.capture.module import capture_module
from convbn.fuse.frontends.torch.modules.copies import _copied_by_its_dict, duplicate
from convbn.fuse.frontends.torch.modules.instrument import instrument
from convbn.fuse.frontends.torch.modules.isolation import exclusive_capture

_X = torch.rand(1, 3, 8, 8)


class _Parent(nn.Module):
    """Refers to a child twice, to itself, and to a list of both."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.again = self.body[0]
        vars(self)["me"] = self
        self.listed = [self.body[1], {"weight": self.body[0].weight}]
        self.empty: dict[str, Any] = {}
        self.same_empty = self.empty

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.body(x)[:, :3])


def test_a_copy_refers_to_its_own_parts() -> None:
    module = _Parent()
    copied: Any = duplicate(module, share=False)
    assert copied is not module
    assert copied.me is copied
    assert copied.again is copied.body[0]
    assert copied.listed[0] is copied.body[1]
    assert copied.listed[1]["weight"] is copied.body[0].weight
    assert copied.same_empty is copied.empty
    assert copied.empty is not module.empty
    assert copied.body[0].weight is not module.body[0].weight
    assert list(vars(copied)) == list(vars(copy.deepcopy(module)))


def test_hooks_are_copied() -> None:
    module = _Parent()
    seen: list[str] = []
    module.body[0].register_forward_hook(lambda *call: seen.append("hook"))
    duplicate(module, share=False)(_X)
    assert len(seen) == 2


def test_most_modules_are_copied_without_detours() -> None:
    assert all(_copied_by_its_dict(kind) for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Sequential, _Parent))
    assert not any(_copied_by_its_dict(kind) for kind in (_WithOwnState, _WithOwnCopy, dict))


class _WithOwnState(nn.Module):
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "copied": True}


class _WithOwnCopy(nn.Module):
    def __deepcopy__(self, memo: dict[int, Any]) -> _WithOwnCopy:
        made = _WithOwnCopy()
        vars(made)["by"] = "itself"
        return made


def test_a_class_with_a_way_of_its_own_is_copied_by_it() -> None:
    copied: Any = duplicate(nn.ModuleList([_WithOwnState(), _WithOwnCopy()]), share=True)
    assert copied[0].copied
    assert copied[1].by == "itself"


class _OnlyOne(nn.Sequential):
    """A class that does not want to be copied, such as a frozen teacher's."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _OnlyOne:
        return self


def test_a_class_that_gives_itself_as_its_copy_is_left_untouched_all_the_same() -> None:
    only = _OnlyOne(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module = nn.Sequential(only, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    before = snapshot(module)
    model, report = convbn.fuse(module, _X)
    assert snapshot(module) == before
    assert report.batchnorm.after == 0
    assert type(model[0]) is _OnlyOne


def test_what_cannot_be_told_from_the_original_is_refused() -> None:
    class Keeps(_WithOwnCopy):
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            made = super().__deepcopy__(memo)
            made.kept = self.kept
            return made

    module = Keeps()
    module.kept = nn.Conv2d(3, 4, 1)
    with pytest.raises(BadInputError, match="a Conv2d in it gives itself as its copy"):
        duplicate(nn.Sequential(module), share=False)


class _Slotted(nn.Conv2d):
    __slots__ = "factor", "unset"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.factor[0]  # type: ignore[no-any-return]


def test_slots_are_copied() -> None:
    part = _Slotted(3, 4, 1)
    part.factor = [2.0]  # type: ignore[misc]
    copied: Any = duplicate(part, share=True)
    assert copied.factor == [2.0]
    assert copied.factor is not part.factor
    assert not hasattr(copied, "unset")
    assert torch.equal(copied(_X), part(_X))


class _Half:
    """Of which a copy is half made when it fails."""

    def __init__(self, *held: Any) -> None:
        self.held = held


def test_what_cannot_be_copied_is_held_by_both() -> None:
    module: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    shared = [1]
    module.first, module.then = _Half(shared, threading.Lock()), shared
    module.lines = (line for line in "ab")
    copied: Any = duplicate(module, share=False)
    assert copied.first is module.first
    assert copied.then == [1]
    assert copied.then is not shared
    assert copied.lines is module.lines
    assert convbn.fuse(module, _X).report.batchnorm.after == 0
    assert convbn.fuse(module).report.batchnorm.after == 0
    assert next(module.lines) == "a"


class _Norm(nn.BatchNorm2d):
    """A class of somebody's own, with children behind the statistics, one of which makes several calls."""

    def __init__(self, *children: nn.Module) -> None:
        super().__init__(4)
        self.drop, self.act = children

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def _markers(*parts: nn.Module) -> int:
    instrumented = instrument(duplicate(nn.Sequential(*parts).eval(), share=True))
    with exclusive_capture():
        program = torch.export.export(instrumented.module, (_X,), strict=False)
    return sum(is_marker(node) for node in program.graph.nodes)


def test_known_layers_carry_no_markers() -> None:
    conv = nn.Conv2d(3, 4, 1)
    assert _markers(conv, nn.BatchNorm2d(4), nn.ReLU()) == 0
    assert _markers(conv, _Norm(nn.Identity(), nn.ReLU())) == 2
    assert _markers(conv, _Norm(nn.Identity(), nn.Softsign())) == 4
    hooked = nn.BatchNorm2d(4)
    hooked.register_forward_hook(lambda *call: None)
    assert _markers(conv, hooked) == 2


def test_children_behind_the_statistics_stay() -> None:
    for act in (nn.ReLU(inplace=True), nn.Softsign(), nn.PReLU(4)):
        module = nn.Sequential(nn.Conv2d(3, 4, 1), _Norm(nn.Identity(), act)).eval()
        captured = capture_module(module, (_X,))
        (norm,) = captured.view.batchnorms()
        assert norm.handle.kept == ("drop", "act")


@pytest.mark.parametrize(
    ("act", "then"),
    [
        (nn.ReLU(), lambda act, y: act(y) + y),
        (nn.ReLU(), lambda act, y: act(y + 1)),
        (nn.Softsign(), lambda act, y: act(input=y)),
    ],
)
def test_children_that_could_not_stay_alone_keep_the_batchnorm(
    act: nn.Module, then: Callable[..., Any]
) -> None:
    class Other(_Norm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return then(self.act, nn.BatchNorm2d.forward(self, x))

    module = nn.Sequential(nn.Conv2d(3, 4, 1), Other(nn.Identity(), act)).eval()
    (norm,) = capture_module(module, (_X,)).view.batchnorms()
    assert "does more than" in norm.locks["bypass"].detail


def test_the_counter_is_no_input_unless_it_counts() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert "1.num_batches_tracked" in instrument(duplicate(module, share=True)).tensors
    assert "1.num_batches_tracked" not in instrument(duplicate(module.eval(), share=True)).tensors
    assert "1.num_batches_tracked" in module.state_dict()


def test_whoever_reads_the_counter_still_can() -> None:
    class Reads(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self[1].num_batches_tracked

    captured = capture_module(Reads(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), (_X,))
    (norm,) = captured.view.batchnorms()
    assert "reads its 'num_batches_tracked'" in norm.locks["bypass"].detail


def test_what_is_switched_off_for_a_capture_is_switched_on_again() -> None:
    before = config.do_not_emit_stack_traces
    capture_module(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), (_X,))
    assert config.do_not_emit_stack_traces is before
