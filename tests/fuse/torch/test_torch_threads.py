"""Folds in a process that does other work: several at once, others' models running, global state put back."""

from __future__ import annotations

import os
import random
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convbn
from convbn.common import exclusive as locks
from convbn.errors import BadInputError

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def net(seed: int = 0, blocks: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    parts = (
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(blocks)
    )
    module = nn.Sequential(*parts).eval()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)  # or the signal would die out on the way
    return module


class Branching(nn.Module):
    """Neither exported nor traced: it is recorded from a run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(x))
        return y if float(y.sum()) > 0 else y + 1


class Drawing(nn.Module):
    """Draws random numbers from three generators and fails if it is told to."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        random.random()
        np.random.rand()
        torch.rand(1)
        y: torch.Tensor = self.norm(self.conv(x))
        if self.fails:
            raise ValueError("as it was told")
        return y


def state() -> dict[str, Any]:
    return {
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": torch.backends.cudnn.enabled,
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "numpy random": np.random.get_state()[1].tobytes(),  # type: ignore[union-attr]
        "python random": random.getstate(),
        "warning filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "streams": (sys.stdout, sys.stderr),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "call": nn.Module.__call__,
        "getattr": nn.Module.__getattr__,
        "patcher": torch.fx._symbolic_trace._Patcher,
    }


def folded_bytes(module: nn.Module) -> tuple[Any, ...]:
    model, report = convbn.fuse(module, X)
    tensors = [(name, tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()]
    verify = {key: value for key, value in report.verify.items() if "seconds" not in key}
    return tensors, report.folded, report.kept, str(verify)


def test_threads_fold_as_one_thread_does_while_another_infers() -> None:
    modules = [net(seed) for seed in range(24)]
    wanted = [folded_bytes(module) for module in modules]
    other, before = net(99), state()
    with torch.no_grad():
        right = other(X)
    problems: list[str] = []
    stop = threading.Event()

    def serve() -> None:
        with torch.no_grad():
            while not stop.is_set():
                try:
                    if not torch.allclose(other(X), right, atol=1e-5):
                        problems.append("other numbers")
                except BaseException as error:
                    problems.append(repr(error))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(folded_bytes, modules))
    finally:
        stop.set()
        thread.join()
    assert not problems
    assert got == wanted
    assert [name for name, value in state().items() if value != before[name]] == []


class Calling(nn.Module):
    """Calls a function in its forward."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.call()
        return x


@pytest.mark.parametrize(
    "capture",
    [
        convbn.inspect,
        lambda module: convbn.inspect(module, X),
        lambda module: convbn.inspect(nn.Sequential(module, Branching()).eval(), X),
        lambda module: convbn.export_onnx(module, X, fold=False),
    ],
    ids=["traced", "exported", "recorded", "onnx"],
)
def test_modules_that_another_thread_calls_during_a_capture_run_as_ever(
    capture: Callable[[nn.Module], Any],
) -> None:
    """The other thread is started by the very forward that is captured: no race decides what this test sees."""
    other = net(1)
    called: list[str] = []

    def run() -> None:
        with torch.no_grad():
            called.append("ran" if type(other(X)) is torch.Tensor else "was captured")

    def call() -> None:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        called.append("ended")

    capture(nn.Sequential(net(2), Calling(call)).eval())
    assert set(called) == {"ran", "ended"}
    assert called.count("ran") == called.count("ended")


def test_exports_in_threads_are_the_same() -> None:
    modules = [net(seed, blocks=2) for seed in range(4)]

    def export(module: nn.Module) -> bytes:
        return convbn.export_onnx(module, X).SerializeToString()

    wanted = [export(module) for module in modules]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(export, modules)) == wanted


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back_also_where_the_forward_fails(fails: bool) -> None:
    module = Drawing(fails=fails).eval()
    convbn.fuse(net(), X)  # imports are done
    torch.manual_seed(5)
    before = state()
    for inputs in ((X,), ()):
        if fails:
            with pytest.raises(BadInputError, match="as it was told"):
                convbn.fuse(module, *inputs)
        else:
            convbn.fuse(module, *inputs)
    assert [name for name, value in state().items() if value != before[name]] == []


def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locks.exclusive():
            inside.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        with locks.exclusive():
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert status == 0


def test_what_other_threads_print_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with locks.quiet():
        print("mine")
        thread = threading.Thread(target=print, args=("theirs",))
        thread.start()
        thread.join()
    assert capsys.readouterr().out == "theirs\n"


def test_training_mode_is_warned_of_once_where_nothing_is_folded() -> None:
    with pytest.warns(
        UserWarning, match=r"5 of 5 BatchNorms are in training mode; call model.eval\(\)"
    ) as told:
        convbn.fuse(net().train())
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convbn.fuse(net())
