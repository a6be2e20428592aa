"""Engines at work. Here no GPU is needed: the calls are held against the installed bindings, and the copies go
through a CUDA driver that a C compiler makes of malloc and memcpy. On a GPU the last test does it for real."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support import tensorrt_calls
from support.bindings import Bindings

from convbn.errors import BadInputError, FileAccessError, NotSupportedError, UsageError
from convbn.export.dtypes import host_type
from convbn.export.engines.backends.gpus import list_gpus
from convbn.export.engines.build.build import build_engine
from convbn.export.engines.errors import (
    BuildError,
    CaptureError,
    EngineIncompatibleError,
    EngineMismatchError,
    NoGpuError,
    UntrustedEngineError,
)
from convbn.export.engines.run import buffers, cuda, runner
from convbn.export.engines.run.cuda import CudaDevice
from convbn.export.engines.run.runner import EngineRunner

real = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

RTX = "tensorrt-rtx"
ADA = "NVIDIA GeForce RTX 4090, 8.9, 570.1"


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Makes a loadable engine file; the work itself is y = 2x."""

    def make(device=tensorrt_calls.HostDevice, **script):
        answers = {**tensorrt_calls.engine_script(real), **script}
        bindings = Bindings(real, answers)
        tensorrt_calls.stand_in(monkeypatch, bindings, RTX, device)
        path = tensorrt_calls.engine_file(tmp_path, b"vtrt")
        return path, bindings

    return make


def ramp(rows):
    return np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)


def test_without_trust_nothing_is_loaded(saved, tmp_path):
    build_engine(saved, tmp_path / "a.engine", backend=RTX)
    with pytest.raises(UntrustedEngineError) as error:
        EngineRunner(tmp_path / "a.engine")
    assert str(error.value) == (
        f"{tmp_path / 'a.engine'}: an engine is a program; "
        "say trust=True, or --trust-engine, if you trust where it comes from"
    )
    assert error.value.exit_code == 2


def test_what_is_no_engine(saved):
    with pytest.raises(BadInputError, match="is no TensorRT engine but a ONNX model"):
        EngineRunner(saved, trust=True)


@pytest.mark.skipif(bool(list_gpus()), reason="there is a GPU")
def test_a_real_engine_without_a_gpu(saved, tmp_path):
    build_engine(saved, tmp_path / "a.engine", backend=RTX)
    with pytest.raises(
        NoGpuError, match="there is no NVIDIA driver here; an engine is loaded only where a GPU is"
    ):
        EngineRunner(tmp_path / "a.engine", trust=True)


def test_an_engine_that_is_not_the_one_described(saved, tmp_path):
    build_engine(saved, tmp_path / "a.engine", backend=RTX)
    with (tmp_path / "a.engine").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(EngineMismatchError):
        EngineRunner(tmp_path / "a.engine", trust=True)


def test_arrays_in_arrays_out(engine):
    path, bindings = engine()
    with EngineRunner(path, trust=True) as run:
        assert [info.name for info in run.inputs] == ["x"]
        assert [info.shape for info in run.outputs] == [(-1, 2)]
        for rows in (1, 3, 3, 4, 1):
            np.testing.assert_array_equal(run({"x": ramp(rows)})["y"], 2 * ramp(rows))
    # TensorRT-RTX makes graphs itself, and is asked to.
    assert "IRuntimeConfig.cuda_graph_strategy=" in bindings.calls


def test_a_view_that_is_not_contiguous(engine):
    path, _ = engine()
    with EngineRunner(path, trust=True) as run:
        value = ramp(8)[::2]
        np.testing.assert_array_equal(run({"x": value})["y"], 2 * value)


def test_classic_tensorrt_replays_a_graph(engine, monkeypatch):
    device = tensorrt_calls.HostDevice()
    path, _ = engine(lambda: device)
    monkeypatch.setattr(real.ICudaEngine, "create_runtime_config", None, raising=False)
    monkeypatch.delattr(real.ICudaEngine, "create_runtime_config")
    with EngineRunner(path, trust=True) as run:
        for rows in (2, 2, 2, 3, 3):
            np.testing.assert_array_equal(run({"x": ramp(rows)})["y"], 2 * ramp(rows))
    assert device.launched == 3
    assert device.blocks == {}
    assert device.closed


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "input 'x' is missing"),
        ({"x": ramp(1), "q": ramp(1)}, "there is no input 'q'; there are x"),
        ({"x": ramp(1).astype(np.float64)}, "input 'x' is float64, the engine takes float32"),
        ({"x": [[1.0, 2.0]]}, "input 'x' is a list, not a NumPy array or a CUDA tensor"),
        ({"x": ramp(5)}, "input 'x' is 5x2, and profile 0 takes 1x2 to 4x2"),
        ({"x": np.zeros((1, 3), np.float32)}, "input 'x' is 1x3, and profile 0 takes 1x2 to 4x2"),
    ],
)
def test_inputs_that_do_not_fit(engine, inputs, told):
    path, _ = engine()
    with EngineRunner(path, trust=True) as run:
        with pytest.raises(UsageError) as error:
            run(inputs)
        assert str(error.value) == f"{path}: {told}"
        np.testing.assert_array_equal(run({"x": ramp(2)})["y"], 2 * ramp(2))


def test_profiles_are_counted(engine):
    path, bindings = engine()
    with pytest.raises(UsageError, match="there is no profile 2; the engine has 2"):
        EngineRunner(path, trust=True, profile=2)
    with EngineRunner(path, trust=True, profile=1):
        assert "IExecutionContext.set_optimization_profile_async" in bindings.calls


def test_failures_of_tensorrt(engine):
    path, _ = engine(**{"IExecutionContext.execute_async_v3": False})
    with (
        EngineRunner(path, trust=True) as run,
        pytest.raises(BuildError, match="TensorRT cannot run this engine"),
    ):
        run({"x": ramp(1)})
    path, _ = engine(**{"IExecutionContext.set_tensor_address": False})
    with EngineRunner(path, trust=True) as run, pytest.raises(BuildError, match="takes no memory for 'x'"):
        run({"x": ramp(1)})
    path, _ = engine(**{"ICudaEngine.create_execution_context": None})
    with pytest.raises(BuildError, match="TensorRT cannot run this engine: it gives no reason"):
        EngineRunner(path, trust=True)


def test_shapes_that_depend_on_values(engine):
    path, _ = engine(**{"IExecutionContext.get_tensor_shape": (-1, 2)})
    with EngineRunner(path, trust=True) as run, pytest.raises(NotSupportedError, match="depends on values"):
        run({"x": ramp(1)})


def test_types():
    assert host_type("BF16").itemsize == 2
    assert host_type("FP8").itemsize == 1
    with pytest.raises(NotSupportedError, match="type FP4 cannot be passed"):
        host_type("FP4")


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        (2, "it was not built for this GPU"),
        (1 | 4, "it is of another version and the driver is too old"),
        (32, "it is damaged"),
    ],
)
def test_engines_that_do_not_load_say_why(engine, bits, told):
    path, _ = engine(
        **{"Runtime.get_engine_validity": lambda runtime, data: (real.EngineValidity.INVALID, bits)}
    )
    with pytest.raises(EngineIncompatibleError) as error:
        EngineRunner(path, trust=True)
    assert str(error.value) == (
        f"{path}: does not load in tensorrt-rtx {real.__version__}, built with 11.4.0.106: {told}; build it again here"
    )


def test_the_runtime_cache_is_kept_for_the_next_time(engine, driver, tmp_path):
    driver(ADA)
    seen = []
    path, _ = engine(
        **{"IRuntimeCache.deserialize": lambda cache, data: seen.append(data) or True, "IHostMemory": b"jit"}
    )
    for _ in range(2):
        with EngineRunner(path, trust=True, runtime_cache=tmp_path / "c") as run:
            run({"x": ramp(1)})
    assert seen == [b"jit"]
    (cache,) = (tmp_path / "c").glob("*.cache")
    assert cache.name.startswith(f"runtime-{real.__version__}-sm89-")
    (tmp_path / "file").touch()
    with pytest.raises(FileAccessError, match="cannot be read: not a directory"):
        EngineRunner(path, trust=True, runtime_cache=tmp_path / "file" / "x")
    run = EngineRunner(path, trust=True, runtime_cache=tmp_path / "later")
    (tmp_path / "later").touch()
    with pytest.warns(RuntimeWarning, match="The runtime cache was not written: "):
        run.close()


# The driver interface itself.


def test_copies_and_memory(cuda_stub):
    device = CudaDevice()
    value = np.arange(5, dtype=np.int32)
    one, two = device.allocate(value.nbytes), device.allocate(value.nbytes)
    device.upload(one, value)
    device.copy(two, one, value.nbytes)
    back = np.zeros_like(value)
    device.download(back, two)
    device.synchronize()
    np.testing.assert_array_equal(back, value)
    assert device.stream
    device.free(one)
    device.free(two)
    device.close()
    device.close()
    assert cuda_stub.stub_live() == 0
    assert cuda_stub.stub_contexts() == 0


def test_a_call_that_fails_is_named(cuda_stub):
    device = CudaDevice()
    with pytest.raises(
        cuda.CudaError, match=r"the CUDA driver says: out of memory \(cuMemAlloc_v2, error 2\)"
    ):
        device.allocate(2 << 30)
    device.close()


def test_a_graph_is_captured_and_launched(cuda_stub):
    device = CudaDevice()
    before = cuda_stub.stub_replays()
    calls = []
    graph = device.capture(lambda: calls.append(1))
    device.launch(graph)
    assert cuda_stub.stub_replays() == before + 1
    device.drop(graph)
    assert calls == [1]

    def failing():
        raise BuildError("TensorRT cannot run this engine", source="a.engine")

    with pytest.raises(CaptureError) as error:
        device.capture(failing)
    assert str(error.value) == (
        "the engine's work fits no CUDA graph: TensorRT cannot run this engine; "
        "run it without one: cuda_graph=False, or @enqueue in a benchmark"
    )
    with pytest.raises(ZeroDivisionError):
        device.capture(lambda: bool(1 // 0))
    device.synchronize()  # the capture was ended
    device.close()


def test_the_runner_on_the_driver(engine, cuda_stub):
    path, _ = engine(CudaDevice)
    before = cuda_stub.stub_allocations()
    with EngineRunner(path, trust=True, cuda_graph=False) as run:
        for rows in (1, 4, 4, 4, 2):
            np.testing.assert_array_equal(run({"x": ramp(rows)})["y"], 2 * ramp(rows))
    assert cuda_stub.stub_allocations() == before + 6  # an input and an output for each of three shapes
    assert cuda_stub.stub_live() == 0
    assert cuda_stub.stub_contexts() == 0
    run.close()
    with pytest.raises(UsageError, match="the engine was closed"):
        run({"x": ramp(1)})


def test_tensors_in_tensors_out(engine, cuda_stub, monkeypatch):
    """PyTorch's CPU tensors stand in for its CUDA ones: here the driver's memory is the host's too."""
    torch = pytest.importorskip("torch")
    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    for module in (buffers, runner):
        monkeypatch.setattr(module, "is_cuda_tensor", lambda value: not isinstance(value, np.ndarray))
    path, _ = engine(CudaDevice)
    with EngineRunner(path, trust=True, cuda_graph=False) as run:
        value = torch.from_numpy(ramp(4))[::2]  # not contiguous
        found = run({"x": value})["y"]
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, 2 * value)
        with pytest.raises(UsageError, match="input 'x' is float64, the engine takes float32"):
            run({"x": value.double()})
        with pytest.raises(UsageError, match="input 'x' lies on cuda:1, the engine on the first GPU"):
            run({"x": SimpleNamespace(device=torch.device("cuda:1"))})
    assert waited == [1]


def test_no_device(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "_LIBRARY", "libnosuchcuda.so.1")
    with pytest.raises(NoGpuError, match="there is no NVIDIA driver here"):
        CudaDevice()


@pytest.mark.gpu
def test_on_a_gpu(tiny, tmp_path):
    """Whatever backend serves the GPU here: the engine against onnxruntime, plain and as a graph."""
    if not list_gpus():
        pytest.skip("needs a GPU")
    import onnxruntime

    from convbn.export.shapes import parse_profiles

    model = tiny.conv_bn(folded=True, batch="n")
    shapes = parse_profiles(["x=1x3x8x8:2x3x8x8:4x3x8x8"])
    path = build_engine(model, tmp_path / "a.engine", shapes=shapes, tf32=False).path
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for cuda_graph in (False, True):
        with EngineRunner(path, trust=True, cuda_graph=cuda_graph) as run:
            for rows in (1, 1, 4, 1):
                feed = {"x": rng.standard_normal((rows, 3, 8, 8)).astype(np.float32)}
                np.testing.assert_allclose(run(feed)["y"], session.run(None, feed)[0], rtol=1e-4, atol=1e-5)
            if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
                tensor = sys.modules["torch"].from_numpy(feed["x"]).cuda()
                np.testing.assert_allclose(
                    run({"x": tensor})["y"].cpu(), session.run(None, feed)[0], rtol=1e-4, atol=1e-5
                )
    assert runner.list_gpus()
