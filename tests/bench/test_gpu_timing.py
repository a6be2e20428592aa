"""Timing on a GPU's stream, against a driver of the same interface that is compiled for the test; and engines in a
benchmark, whose calls to TensorRT are held against the installed bindings."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tensorrt_calls

from convbn.bench.cases.forms import with_engines
from convbn.bench.models.errors import RuntimeMissingError, SessionError
from convbn.bench.runtimes import engine_session
from convbn.bench.runtimes.base import SessionOptions, Variant
from convbn.bench.runtimes.engine_session import open_session
from convbn.bench.runtimes.gpu.stream import GpuStream, gpu_facts
from convbn.errors import ConvBNError, NotSupportedError, UsageError
from convbn.export.engines.errors import CaptureError, UntrustedEngineError
from convbn.export.engines.run import cuda
from convbn.export.engines.run.cuda import CudaDevice
from convbn.export.engines.run.load import EngineFile
from convbn.export.engines.sidecar import read_sidecar
from convbn.export.loading.source_model import SourceModel


def test_the_device_is_named_with_its_place(cuda_stub: ctypes.CDLL) -> None:
    device = CudaDevice()
    facts = gpu_facts(device, "enqueue", "warm")
    assert (facts.name, facts.bus_id) == ("Stub GPU", "0000:3B:00.0")
    assert device.free_memory() == 2**33
    device.close()


@pytest.mark.parametrize("l2", ["warm", "flushed"])
@pytest.mark.parametrize("mode", ["graph", "enqueue"])
def test_events_stand_around_the_inference_and_nothing_else(
    cuda_stub: ctypes.CDLL, mode: str, l2: str
) -> None:
    before, replays = cuda_stub.stub_live(), cuda_stub.stub_replays()
    gpu = GpuStream(l2)  # type: ignore[arg-type]  # one of two
    prepared = gpu.prepared(lambda: cuda_stub.stub_work(250.0), mode)  # type: ignore[arg-type]  # one of two
    assert prepared.device_times is not None
    assert prepared.device_times(5) == pytest.approx([250e-6] * 5)
    prepared.call()
    assert cuda_stub.stub_replays() - replays == (6 if mode == "graph" else 0)
    if l2 == "flushed":
        assert cuda_stub.stub_flushed() == 2 * 2**20
    gpu.close()
    gpu.close()
    assert cuda_stub.stub_live() == before
    assert cuda_stub.stub_contexts() == 0


def test_a_failed_capture_is_one_sentence_and_ends_the_capture(cuda_stub: ctypes.CDLL) -> None:
    gpu = GpuStream("warm")
    cuda_stub.stub_fail_capture(1)
    try:
        with pytest.raises(CaptureError, match=r"during capture \(cuStreamEndCapture, error 901\)"):
            gpu.prepared(lambda: None, "graph")
    finally:
        cuda_stub.stub_fail_capture(0)
        gpu.close()

    def broken() -> None:
        raise SessionError("the engine cannot run")

    gpu = GpuStream("warm")
    with pytest.raises(CaptureError, match="cannot run"):
        gpu.device.capture(broken)
    gpu.prepared(lambda: cuda_stub.stub_work(1.0), "graph")  # the stream is usable again
    gpu.close()


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LIBRARY", "libcuda-that-is-not-here.so")
    with pytest.raises(RuntimeMissingError, match="no NVIDIA driver"):
        CudaDevice()


Opener = Callable[..., Variant]


@pytest.fixture
def engine_side(cuda_stub: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Makes a side with an engine for TensorRT-RTX whose work is y = 2x and takes 40 µs."""
    real = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

    def make(*, trust: bool = True, name: str = "tensorrt-rtx", **script: Any) -> Variant:
        answers = {**tensorrt_calls.engine_script(real), **script}
        work = answers["IExecutionContext.execute_async_v3"]

        def execute(context: Any, stream: int) -> bool:
            cuda_stub.stub_work(40.0)
            return bool(stream) and bool(work(context, stream))

        answers["IExecutionContext.execute_async_v3"] = execute
        tensorrt_calls.stand_in(
            monkeypatch, tensorrt_calls.Bindings(real, answers), "tensorrt-rtx", CudaDevice
        )
        return Variant(
            "mine", engines={name: EngineFile(tensorrt_calls.engine_file(tmp_path, b"vtrt"), trust)}
        )

    before = cuda_stub.stub_live()
    yield make
    assert cuda_stub.stub_live() == before
    assert cuda_stub.stub_contexts() == 0


def opened(model: Variant, *levels: str) -> Any:
    return open_session(model, SessionOptions(), "tensorrt-rtx", levels)


@pytest.mark.parametrize("levels", [(), ("enqueue",)])
def test_an_engine_gets_its_inputs_and_gives_its_outputs(
    engine_side: Opener, levels: tuple[str, ...]
) -> None:
    with opened(engine_side(), *levels) as session:
        values = np.arange(6).reshape(3, 2)  # of another type than the engine takes
        (doubled,) = session.run({"x": values, "unused": values})
        assert session.output_names == ("y",)
        assert doubled.dtype == np.float32
        assert np.array_equal(doubled, 2.0 * values)
        again = session.run({"x": values + 1})[0]
        assert np.array_equal(doubled, 2.0 * values)  # a result is not written over by the next
        assert np.array_equal(again, 2.0 * (values + 1))
        prepared = session.prepare({"x": values})
        assert prepared.device_times is not None
        assert prepared.device_times(3) == pytest.approx([40e-6] * 3)
        assert prepared.device is not None
        assert prepared.device.mode == ("enqueue" if levels else "graph")
        assert prepared.device.tf32 is None  # nothing says how it was built


def test_device_memory_of_an_engine_is_allocated_once(engine_side: Opener, cuda_stub: ctypes.CDLL) -> None:
    with opened(engine_side()) as session:
        session.run({"x": np.ones((2, 2))})
        before = cuda_stub.stub_allocations()
        for value in range(5):
            assert session.run({"x": np.full((2, 2), value)})[0][0, 0] == 2 * value
        session.prepare({"x": np.ones((2, 2))})
        assert cuda_stub.stub_allocations() == before


def test_the_kernels_are_settled_before_an_engine_is_timed(engine_side: Opener) -> None:
    seen = []

    def make(config: Any) -> Any:
        seen.append(config)
        return config._bindings.make("IRuntimeConfig")

    with opened(engine_side(**{"ICudaEngine.create_runtime_config": make})):
        pass
    (engine,) = seen
    assert "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy=" in engine._bindings.calls


def test_what_an_engine_does_not_take_is_one_sentence(engine_side: Opener) -> None:
    with opened(engine_side()) as session:
        with pytest.raises(UsageError, match=r"m.engine: input 'x' is 4, and profile 0 takes 1x2 to 4x2"):
            session.run({"x": np.zeros(4)})
        with pytest.raises(UsageError, match="input 'x' is missing"):
            session.run({"y": np.zeros((1, 2))})
    real = pytest.importorskip("tensorrt_rtx")
    host = engine_side(**{"ICudaEngine.get_tensor_location": real.TensorLocation.HOST})
    with pytest.raises(NotSupportedError, match="holds a shape"):
        opened(host)


def test_an_engine_that_nobody_trusts_is_never_handed_to_tensorrt(engine_side: Opener) -> None:
    given: list[int] = []
    script = {"Runtime.deserialize_cuda_engine": lambda runtime, data: given.append(len(data))}
    with pytest.raises(
        UntrustedEngineError, match="an engine is a program; say trust=True, or --trust-engine"
    ):
        opened(engine_side(trust=False, **script))
    assert not given
    with pytest.raises(ConvBNError, match="does not load"):
        opened(engine_side(**script))
    assert given


def test_an_engine_of_the_other_tensorrt_is_not_measured_under_its_name(
    engine_side: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = engine_side(name="tensorrt")
    with pytest.raises(SessionError, match=r"is an engine of tensorrt-rtx, not of tensorrt"):
        open_session(side, SessionOptions(), "tensorrt", ())


def described(file: EngineFile, tf32: bool) -> EngineFile:
    """The engine with a sidecar that says how it was built."""
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
    sidecar = {"schema_version": "1", "engine": {"sha256": digest}, "tf32": tf32}
    Path(f"{file.path}.json").write_text(json.dumps(sidecar))
    return file


@pytest.mark.parametrize(("tf32", "coarsest"), [(True, "float16"), (False, None), (None, "float16")])
def test_an_engine_is_held_to_what_it_was_built_to_round_to(
    engine_side: Opener, tf32: bool | None, coarsest: str | None
) -> None:
    side = engine_side()
    file = side.engines["tensorrt-rtx"]
    assert isinstance(file, EngineFile)
    if tf32 is not None:
        described(file, tf32)
    with opened(side) as session:
        assert session.compute_dtype == coarsest
        prepared = session.prepare({"x": np.ones((2, 2))})
        assert prepared.device is not None
        assert prepared.device.tf32 is tf32


def test_tf32_is_timed_and_float32_is_proven(
    engine_side: Opener, tmp_path: Path, cuda_stub: ctypes.CDLL
) -> None:
    side = engine_side()
    exact = side.engines["tensorrt-rtx"]
    assert isinstance(exact, EngineFile)
    (tmp_path / "tf32").mkdir()
    coarse = EngineFile(tensorrt_calls.engine_file(tmp_path / "tf32", b"vtrt"), trust=True)
    engines = {"tensorrt-rtx": described(exact, False), "tensorrt-rtx@tf32": described(coarse, True)}
    with opened(replace(side, engines=engines), "enqueue", "tf32") as session:
        assert session.compute_dtype is None
        assert session.run({"x": np.ones((2, 2))})[0][0, 0] == 2
        assert cuda_stub.stub_contexts() == 1  # memory is measured without the other engine
        prepared = session.prepare({"x": np.ones((2, 2))})
        assert (prepared.device.mode, prepared.device.tf32) == ("enqueue", True)
    with pytest.raises(
        NotSupportedError, match=r"tensorrt-rtx@tf32 needs an engine built for it; convbn export"
    ):
        opened(side, "tf32")


def test_engines_of_a_benchmark_are_built_with_tf32_only_where_a_level_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    monkeypatch.setattr(engine_session, "require_gpu", lambda **where: None)
    model = Variant("mine", onnx=tensorrt_calls.tiny_model())
    source = SourceModel(model.onnx, input_shapes={"x": (2, 2)})
    found = with_engines(model, ["tensorrt-rtx", "tensorrt-rtx@enqueue+tf32"], source, tmp_path).engines
    built = {name: file for name, file in found.items() if isinstance(file, EngineFile)}
    assert {name: read_sidecar(file.path)["tf32"] for name, file in built.items()} == {
        "tensorrt-rtx": False,
        "tensorrt-rtx@tf32": True,
    }
    assert all(file.trust for file in built.values())
