"""What onnxruntime's GPU providers need, asked before a model is loaded."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from convbn.bench.models.errors import RuntimeMissingError
from convbn.bench.runtimes import onnxruntime_session
from convbn.bench.runtimes.onnxruntime_providers import import_onnxruntime, nvinfer_release
from convbn.bench.runtimes.onnxruntime_session import provider_options


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with a TensorRT provider that is linked to libnvinfer.so.9 as the real one is to its own."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "empty.c").write_text("int nvinfer_of_the_test(void) { return 0; }\n")
    (tmp_path / "user.c").write_text(
        "int nvinfer_of_the_test(void); int f(void) { return nvinfer_of_the_test(); }\n"
    )
    library, provider = (
        tmp_path / "libnvinfer.so.9",
        tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so",
    )
    provider.parent.mkdir()
    build = [compiler, "-shared", "-fPIC", "-o"]
    subprocess.run([*build, library, tmp_path / "empty.c", "-Wl,-soname,libnvinfer.so.9"], check=True)
    subprocess.run([*build, provider, tmp_path / "user.c", library], check=True)
    library.unlink()
    return tmp_path


def test_the_tensorrt_that_is_asked_for_is_the_one_the_provider_is_linked_to(
    linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nvinfer_release(linked / "capi") == 9
    assert nvinfer_release(linked) is None
    monkeypatch.setattr(onnxruntime, "__file__", str(linked / "__init__.py"))
    with pytest.raises(RuntimeMissingError, match="has no TensorrtExecutionProvider") as caught:
        import_onnxruntime("tensorrt")
    assert "'tensorrt>=9,<10'" in str(caught.value.hint)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    with pytest.raises(RuntimeMissingError, match=r"needs libnvinfer\.so\.9"):
        import_onnxruntime("tensorrt")


def test_without_a_provider_the_release_that_onnxruntime_links_today_is_named() -> None:
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("shows what happens without TensorRT")
    with pytest.raises(RuntimeMissingError) as caught:
        import_onnxruntime("tensorrt")
    assert "'tensorrt>=10,<11'" in str(caught.value.hint)  # libnvinfer 11 came later


def test_libraries_of_pip_are_loaded_before_a_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def preload() -> None:
        calls.append("preload")
        print("Failed to load libcudnn.so.9")  # as onnxruntime's does, into what may be JSON

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    import_onnxruntime("cpu")
    assert calls == []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    import_onnxruntime("cuda")
    assert calls == ["preload"]
    assert capsys.readouterr().out == ""
    monkeypatch.delattr(onnxruntime, "preload_dlls")
    import_onnxruntime("cuda")


def test_float32_is_tf32_only_where_the_level_says_so() -> None:
    assert provider_options("cuda", (), 7) == {
        "user_compute_stream": "7",
        "use_tf32": "0",
        "enable_cuda_graph": "0",
        "prefer_nhwc": "0",
    }
    told = provider_options("cuda", ("tf32", "nhwc"), 7)
    assert (told["use_tf32"], told["prefer_nhwc"], told["enable_cuda_graph"]) == ("1", "1", "0")
    assert provider_options("cpu", (), None) == {}


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float32"])
def test_every_type_arrives_on_a_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the device is on the CPU here: what onnxruntime refuses, it refuses there as well."""
    real = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    def on_the_cpu(shape: object, kind: object, device: str = "cpu", number: int = 0) -> object:
        return real(shape, kind, "cpu", number)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", staticmethod(on_the_cpu))
    array = np.arange(3).reshape(1, 3).astype(getattr(ml_dtypes, name, name))
    value = onnxruntime_session._value(array, "cpu" if name == "float32" else "cuda")
    found = onnxruntime_session._array(value)
    assert found.dtype == array.dtype
    assert (found == array).all()
