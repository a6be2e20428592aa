"""onnxruntime's execution providers: whether one is there, and whether it did all of the work."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from pathlib import Path
from typing import Any

from convbn.bench.models.errors import RuntimeMissingError

__all__ = ["PROVIDERS", "import_onnxruntime", "nvinfer_release", "preload", "require_provider"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_GPU = "on a machine with an NVIDIA GPU: pip uninstall onnxruntime, pip install onnxruntime-gpu"
#: TensorRT's library as the provider's own library names it, and the release that brings it where there is none yet.
_NVINFER, _USUAL_TENSORRT = re.compile(rb"libnvinfer\.so\.(\d+)\0"), 10
#: Arithmetic on shapes, which GPU providers leave to the CPU on purpose: it is a few integers.
_SHAPE_OPERATORS = frozenset(
    {
        *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Mul", "Range"),
        *("Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    }
)


def import_onnxruntime(variant: str) -> Any:
    """onnxruntime, if it has a provider.

    Raises:
        RuntimeMissingError: it or the provider is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError("onnxruntime is not installed", hint="pip install onnxruntime") from error
    folder = Path(onnxruntime.__file__).parent / "capi"
    if PROVIDERS[variant] not in onnxruntime.get_available_providers():
        raise RuntimeMissingError(
            f"this onnxruntime {onnxruntime.__version__} has no {PROVIDERS[variant]}",
            hint=_hint(variant, folder),
        )
    if variant != "cpu":
        preload(onnxruntime)
    if variant == "tensorrt":
        _require_tensorrt(folder)
    return onnxruntime


def preload(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from the packages of pip, where the provider's library does not look for them.

    Args:
        onnxruntime: the module; before 1.21 it has no way to do it, and needs the libraries on the loader's path.
    """
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find
            onnxruntime.preload_dlls()


def nvinfer_release(folder: Path) -> int | None:
    """The major version of TensorRT whose library the TensorRT provider in a folder is linked to.

    Args:
        folder: onnxruntime's folder of libraries.

    Returns:
        The number in ``libnvinfer.so.10``; None where there is no such provider, or none on Linux.
    """
    try:
        library = (folder / "libonnxruntime_providers_tensorrt.so").read_bytes()
    except OSError:
        return None
    found = _NVINFER.search(library)
    return None if found is None else int(found[1])


def _require_tensorrt(folder: Path) -> None:
    """Refuse where the TensorRT that the provider is linked to cannot be loaded.

    Without this onnxruntime loads the model without the provider, and says why on standard error alone.
    """
    release = nvinfer_release(folder)
    if release is None:
        return
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        import tensorrt  # noqa: F401  # loads its library from the package of pip
    try:
        ctypes.CDLL(f"libnvinfer.so.{release}")
    except OSError as error:
        raise RuntimeMissingError(
            f"onnxruntime's TensorRT provider needs libnvinfer.so.{release} ({error})",
            hint=_hint("tensorrt", folder),
        ) from error


def _hint(variant: str, folder: Path) -> str | None:
    if variant != "tensorrt":
        return _GPU if variant == "cuda" else None
    release = nvinfer_release(folder) or _USUAL_TENSORRT
    return f"{_GPU} 'tensorrt>={release},<{release + 1}'"


def require_provider(session: Any, provider: str, name: str) -> None:
    """Refuse a session in which another provider than the one asked for does some of the work.

    Raises:
        RuntimeMissingError: it does, or this onnxruntime cannot say.
    """
    if provider not in session.get_providers():
        raise RuntimeMissingError(
            f"onnxruntime loaded the model without {provider}",
            source=name,
            hint="check the CUDA, cuDNN and TensorRT libraries that this onnxruntime needs",
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise RuntimeMissingError(
            "this onnxruntime cannot say which provider runs which node",
            source=name,
            hint="pip install --upgrade onnxruntime-gpu",
        )
    strays = _foreign_nodes(session, provider)
    if strays:
        raise RuntimeMissingError(
            f"{provider} leaves {len(strays)} nodes to another provider ({', '.join(sorted(set(strays))[:5])})",
            source=name,
            hint="measure it in a runtime that takes all of it",
        )


def _foreign_nodes(session: Any, provider: str) -> list[str]:
    """Operators that another provider runs, arithmetic on shapes left out."""
    return [
        str(node.op_type)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if node.op_type not in _SHAPE_OPERATORS
    ]
