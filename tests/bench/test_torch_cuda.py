"""What PyTorch is told on a GPU. There is none here: streams and graphs are stood for by ones that do nothing."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from convbn.bench.measure.scoring import TimedSession, _gpu_facts
from convbn.bench.results.environment import library_versions
from convbn.bench.runtimes import torch_cuda, torch_session
from convbn.bench.runtimes.base import Device, Prepared, SessionOptions
from convbn.bench.runtimes.torch_session import TorchSession

FEEDS = {"x": np.ones((2, 3, 8, 8), np.float32)}


class Stream:
    """Of a GPU."""

    def wait_stream(self, other: object) -> None: ...

    def synchronize(self) -> None: ...


class Graph:
    """A captured one."""

    def replay(self) -> None: ...


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    for name, stub in (("Stream", Stream), ("CUDAGraph", Graph), ("graph", nothing), ("stream", nothing)):
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(torch_cuda, "_device", lambda mode, l2: Device("GPU", "0", mode, l2))


def opened(module: torch.nn.Module, variant: str, *levels: str) -> TorchSession:
    return TorchSession(module, "mine", "cuda", variant, SessionOptions(), levels)


@pytest.mark.parametrize("variant", ["eager", "cudagraph"])
def test_what_is_timed_keeps_the_memory_that_it_reads_and_writes(
    gpu: None, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: list[weakref.ref[torch.Tensor]] = []
    outputs: list[weakref.ref[torch.Tensor]] = []
    made = torch_session._tensor

    def kept(array: Any) -> torch.Tensor:
        tensor = made(array)
        inputs.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(torch_session, "_tensor", kept)
    module = torch.nn.Conv2d(3, 8, 3)
    module.register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    prepared = opened(module, variant).prepare(FEEDS)
    gc.collect()
    assert isinstance(prepared, Prepared)
    assert [one() is not None for one in inputs] == [True]
    if variant == "cudagraph":  # a replay writes into the outputs of the run that was captured
        assert outputs[-2]() is not None or outputs[-1]() is not None


@pytest.mark.parametrize(("levels", "timed"), [((), False), (("tf32",), True)])
def test_outputs_are_compared_without_tf32_and_timed_as_the_level_says(
    gpu: None, levels: tuple[str, ...], timed: bool
) -> None:
    seen: list[tuple[bool, bool]] = []
    module = torch.nn.Conv2d(3, 8, 3)
    module.register_forward_hook(
        lambda *_: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
    )
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with opened(module, "eager", *levels) as session:
        assert session.compute_dtype is None
        session.run(FEEDS)
        assert seen == [(False, False)]
        prepared = session.prepare(FEEDS)
        assert set(seen[1:]) == {(timed, timed)}
        assert prepared.device is not None
        assert prepared.device.tf32 is timed
        facts = _gpu_facts(TimedSession(prepared, 0.0))
        assert facts is not None
        assert facts.to_dict()["tf32"] is timed  # as the row says it
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_cudnn_tries_its_algorithms_in_the_timing_alone(gpu: None) -> None:
    seen: list[bool] = []
    module = torch.nn.Conv2d(3, 8, 3)
    module.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    with opened(module, "eager", "cudnn-benchmark") as session:
        session.run(FEEDS)
        session.prepare(FEEDS)
    assert seen[0] is False
    assert set(seen[1:]) == {True}
    assert torch.backends.cudnn.benchmark is False


def test_cuda_and_cudnn_of_torch_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    found = library_versions()
    assert found["CUDA of torch"] == "13.0"
    assert found["cuDNN of torch"] == "91900"
    assert found["NVIDIA_TF32_OVERRIDE"] == "0"
