"""The calls to the CUDA driver, against a library of the same interface that is compiled for the test."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from convbn.bench.models.errors import RuntimeMissingError, SessionError
from convbn.bench.runtimes import cuda_driver
from convbn.bench.runtimes.cuda_driver import CudaDriver
from convbn.bench.runtimes.engine_session import EngineSession
from convbn.bench.runtimes.gpu_stream import GpuStream

COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("stub") / "libcuda_stub.so"
    source = Path(__file__).parent / "libcuda_stub.c"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    stub = ctypes.CDLL(str(path))
    stub.stub_work.argtypes = [ctypes.c_double]
    stub.stub_flushed.restype = ctypes.c_size_t
    return stub


@pytest.fixture
def stub(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(cuda_driver, "_LIBRARIES", (library._name,))
    return library


def test_the_device_is_named_with_its_place(stub: ctypes.CDLL) -> None:
    device = CudaDriver().device("enqueue", "warm")
    assert (device.name, device.bus_id) == ("Stub GPU", "0000:3B:00.0")
    assert CudaDriver().free_memory() == 2**33


@pytest.mark.parametrize("l2", ["warm", "flushed"])
@pytest.mark.parametrize("mode", ["graph", "enqueue"])
def test_events_stand_around_the_inference_and_nothing_else(stub: ctypes.CDLL, mode: str, l2: str) -> None:
    before, replays = stub.stub_live(), stub.stub_replays()
    gpu = GpuStream(l2)  # type: ignore[arg-type]  # one of two
    prepared = gpu.prepared(lambda: stub.stub_work(250.0), mode)  # type: ignore[arg-type]  # one of two
    assert prepared.device_times is not None
    assert prepared.device_times(5) == pytest.approx([250e-6] * 5)
    prepared.call()
    assert stub.stub_replays() - replays == (6 if mode == "graph" else 0)
    if l2 == "flushed":
        assert stub.stub_flushed() == 2 * 2**20
    gpu.close()
    gpu.close()
    assert stub.stub_live() == before


def test_a_failed_capture_is_one_sentence_and_ends_the_capture(stub: ctypes.CDLL) -> None:
    gpu = GpuStream("warm")
    stub.stub_fail_capture(1)
    try:
        with pytest.raises(SessionError, match=r"during capture \(cuStreamEndCapture, error 901\)"):
            gpu.prepared(lambda: None, "graph")
    finally:
        stub.stub_fail_capture(0)
        gpu.close()

    def broken() -> None:
        raise SessionError("the engine cannot run")

    gpu = GpuStream("warm")
    with pytest.raises(SessionError, match="cannot run"):
        gpu.driver.capture(gpu.stream, broken)
    gpu.prepared(lambda: stub.stub_work(1.0), "graph")  # the stream is usable again
    gpu.close()


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_LIBRARIES", ("libcuda-that-is-not-here.so",))
    with pytest.raises(RuntimeMissingError, match="no NVIDIA driver"):
        CudaDriver()


class Engine:
    """The calls that a session makes of TensorRT, for an engine that doubles its input; no GPU runs a real one here.

    Outputs are listed before inputs, as TensorRT may.
    """

    num_io_tensors = 3
    dtypes: ClassVar = {"x": "FLOAT", "doubled": "FLOAT", "halved": "HALF"}

    def __init__(self, stub: ctypes.CDLL, *, location: str = "DEVICE") -> None:
        self.stub, self.location = stub, location
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def get_tensor_name(self, index: int) -> str:
        return ("doubled", "x", "halved")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "x" else "OUTPUT"

    def get_tensor_location(self, name: str) -> str:
        return self.location

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.dtypes[name])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return len(shape) == 2

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shape))

        def memory(name: str, kind: type[np.generic]) -> np.ndarray[Any, Any]:
            size = count * np.dtype(kind).itemsize
            return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), kind)

        memory("doubled", np.float32)[:] = 2 * memory("x", np.float32)
        memory("halved", np.float16)[:] = memory("x", np.float32) / 2
        self.stub.stub_work(40.0)
        return stream != 0


TRT: Any = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="INPUT"), TensorLocation=SimpleNamespace(DEVICE="DEVICE")
)


def test_an_engine_gets_its_inputs_and_gives_its_outputs_in_order(stub: ctypes.CDLL) -> None:
    before = stub.stub_live()
    engine = Engine(stub)
    with EngineSession(TRT, engine, engine, "mine", GpuStream("warm"), "graph") as session:
        values = np.arange(6).reshape(2, 3)  # of another type than the engine takes
        doubled, halved = session.run({"x": values})
        assert session.output_names == ("doubled", "halved")
        assert np.array_equal(doubled, 2.0 * values)
        assert (halved.dtype, halved[1, 2]) == (np.float16, 2.5)
        again = session.run({"x": values + 1})[0]
        assert np.array_equal(doubled, 2.0 * values)  # a result is not written over by the next
        assert np.array_equal(again, 2.0 * (values + 1))
        prepared = session.prepare({"x": values})
        assert prepared.device_times is not None
        assert prepared.device_times(3) == pytest.approx([40e-6] * 3)
    assert stub.stub_live() == before


def test_what_an_engine_does_not_take_is_one_sentence(stub: ctypes.CDLL) -> None:
    engine = Engine(stub)
    with EngineSession(TRT, engine, engine, "mine", GpuStream("warm"), "enqueue") as session:
        with pytest.raises(SessionError, match=r"^mine: the engine does not take shape \[4\] for input 'x'"):
            session.run({"x": np.zeros(4)})
        with pytest.raises(SessionError, match="an input 'x' and none was given"):
            session.run({"y": np.zeros((1, 2))})
    host = Engine(stub, location="HOST")
    with (
        EngineSession(TRT, host, host, "mine", GpuStream("warm"), "enqueue") as session,
        pytest.raises(SessionError, match="holds a shape"),
    ):
        session.run({"x": np.zeros((1, 2))})
