from __future__ import annotations

import sys

import pytest

from convbn.export.engines.backends import registry
from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.backends.gpus import Gpu, list_gpus
from convbn.export.engines.backends.logs import clean, collect, logger_of
from convbn.export.engines.backends.registry import available_backends, choose_backend
from convbn.export.engines.build.build import build_engine
from convbn.export.engines.errors import BackendNotInstalledError, NoGpuError

rtx_module = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

H100 = "NVIDIA H100 80GB HBM3, 9.0, 570.1"
ADA = "NVIDIA GeForce RTX 4090, 8.9, 570.1"


@pytest.fixture
def no_rtx(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)


def test_state_of_this_machine():
    states = {info.name: info for info in available_backends()}
    assert set(states) == {"tensorrt", "tensorrt-rtx"}
    rtx = states["tensorrt-rtx"]
    assert (rtx.installed, rtx.usable, rtx.version) == (True, True, rtx_module.__version__)
    assert rtx.reason is None


def test_missing_backends_say_how_to_get_them(monkeypatch, no_rtx):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        BackendNotInstalledError, match=r"no TensorRT is installed; pip install 'convbn\[rtx\]'"
    ):
        choose_backend()
    for name, extra in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")):
        with pytest.raises(BackendNotInstalledError) as error:
            choose_backend(name)
        assert str(error.value) == f"{name}: is not installed; pip install 'convbn[{extra}]'"


def test_bindings_alone_are_enough(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", rtx_module)
    assert choose_backend("tensorrt-rtx").load() is rtx_module


def test_broken_installations_are_told_from_missing_ones(tmp_path, monkeypatch):
    (tmp_path / "no_library_trt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')\n")
    (tmp_path / "old_trt.py").write_text("__version__ = '8.6'\nclass Builder: pass\n")
    (tmp_path / "blind_trt.py").write_text(
        "from tensorrt_rtx import *\nimport tensorrt_rtx\n__version__ = '1'\n"
        "def Builder(logger): raise TypeError('factory function returned nullptr')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def backend(module: str) -> Backend:
        return Backend("x", (module,), "pip install x", True, lambda gpu: True, "x")

    with pytest.raises(BackendNotInstalledError, match="installed but does not import: libnvinfer"):
        backend("no_library_trt").load()
    assert backend("no_library_trt").info().installed
    with pytest.raises(BackendNotInstalledError, match=r"old_trt 8\.6 has no OnnxParser"):
        backend("old_trt").load()
    info = backend("blind_trt").info()
    assert (info.installed, info.usable) == (True, False)
    assert "nullptr" in str(info.reason)
    assert "GPU" in str(info.hint)


def test_auto_without_a_gpu(driver, classic):
    driver(code=9)
    assert choose_backend().name == "tensorrt-rtx"


def test_auto_prefers_classic_where_a_gpu_is(driver, classic):
    driver(H100)
    assert choose_backend().name == "tensorrt"


def test_auto_takes_rtx_for_an_rtx_gpu(driver):
    driver(ADA)
    assert choose_backend().name == "tensorrt-rtx"


@pytest.mark.parametrize("capability", ["9.0", "10.0", "10.3", "11.0", "7.5"])
def test_auto_never_takes_rtx_for_a_gpu_it_does_not_run_on(driver, capability, tiny, tmp_path):
    driver(f"Some GPU, {capability}, 570.1")
    with pytest.raises(
        NoGpuError, match=rf"do not run on this GPU, Some GPU \(compute capability {capability}\)"
    ):
        choose_backend()
    sidecar = build_engine(tiny.conv_bn(folded=True), tmp_path / "a", backend="tensorrt-rtx").sidecar
    assert sidecar["device"] == {"name": "Some GPU", "compute_capability": capability, "driver": "570.1"}
    assert any("do not run on the GPU here" in warning for warning in sidecar["warnings"])


def test_classic_gives_a_trtexec_line(driver, classic, tiny, saved, tmp_path):
    driver(H100)
    sidecar = build_engine(saved, tmp_path / "a b", tf32=False).sidecar
    assert sidecar["backend"]["name"] == "tensorrt"
    assert sidecar["command"] == (
        f"trtexec --onnx={saved} '--saveEngine={tmp_path / 'a b'}' --stronglyTyped --noTF32 "
        "--profilingVerbosity=detailed"
    )


def test_gpus(driver, monkeypatch):
    driver(ADA, H100)
    assert list_gpus()[0] == Gpu("NVIDIA GeForce RTX 4090", (8, 9), "570.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.compute_capability for gpu in list_gpus()] == [(9, 0)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert list_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert len(list_gpus()) == 2


@pytest.mark.parametrize("answer", ["No devices were found", "a, b", "x, [N/A], 1", ""])
def test_odd_answers_of_the_driver(driver, answer):
    driver(answer)
    assert list_gpus() == []


def test_one_logger_for_all(capfd):
    assert logger_of(rtx_module) is logger_of(rtx_module)
    with collect(rtx_module) as outer:
        rtx_module.Builder(logger_of(rtx_module))
        with collect(rtx_module) as inner:
            logger_of(rtx_module).log(rtx_module.ILogger.ERROR, "in")
        logger_of(rtx_module).log(rtx_module.ILogger.WARNING, "out")
    assert inner.first_error() == "in"
    assert (outer.first_error(), outer.warnings()) == (None, ["out"])
    logger_of(rtx_module).log(rtx_module.ILogger.ERROR, "nobody listens")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape "
            "inputs, but no optimization profile has been defined. In validate at /_src/a/network.cpp:4023)",
            "Network has dynamic or shape inputs, but no optimization profile has been defined",
        ),
        (
            "IBuilder::x: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic Selection: no "
            "tactics. In compileGraph at /_src/g.cpp:2012)",
            "Tactic Selection: no tactics",
        ),
        ("[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at x:1)", ""),
        ('ModelImporter.cpp:140: While parsing node number 0 [FooBar -> "y"]:', ""),
        ('creator && "Plugin not found"', "Plugin not found"),
        ("false", ""),
        ("", ""),
    ],
)
def test_the_telling_part_of_a_message(text, cause):
    assert clean(text) == cause


def test_registry_lists_what_the_folder_holds():
    for name in registry._BACKENDS:
        assert registry.backend_named(name).name == name
