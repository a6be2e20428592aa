"""The backends by name, and the choice between them."""

from __future__ import annotations

import importlib

from convbn.errors import NotSupportedError, UsageError
from convbn.export.engines.backends.backend import Backend, BackendInfo
from convbn.export.engines.backends.gpus import list_gpus
from convbn.export.engines.errors import BackendNotInstalledError, NoGpuError

__all__ = ["available_backends", "backend_named", "choose_backend"]

_BACKENDS = {
    "tensorrt": "convbn.export.engines.backends.tensorrt",
    "tensorrt-rtx": "convbn.export.engines.backends.tensorrt_rtx",
}


def available_backends() -> list[BackendInfo]:
    """State of every backend on this machine, usable or not."""
    return [backend_named(name).info() for name in _BACKENDS]


def choose_backend(name: str = "auto") -> Backend:
    """Find a backend.

    Args:
        name: ``tensorrt``, ``tensorrt-rtx``, or ``auto``: classic TensorRT where it is installed and
            a GPU is usable, else TensorRT-RTX unless the GPU here is one that its engines do not run on.

    Returns:
        A backend that imports and can make a builder.

    Raises:
        UsageError: there is no backend of that name.
        BackendNotInstalledError: none fits; the message has the pip line.
        NoGpuError: the backend needs a GPU, or `auto` found only one that the GPU here does not suit.
        NotSupportedError: it is installed but cannot make a builder.
    """
    if name in _BACKENDS:
        backend = backend_named(name)
        _require(backend)
        return backend
    if name != "auto":
        raise UsageError(f"there is no backend {name!r}", hint=f"choose auto, {' or '.join(_BACKENDS)}")
    gpus = list_gpus()
    classic, rtx = backend_named("tensorrt"), backend_named("tensorrt-rtx")
    if gpus and classic.serves(gpus[0]) and classic.info().usable:
        return classic
    if gpus and not rtx.serves(gpus[0]):
        cause = f"TensorRT-RTX engines do not run on this GPU, {gpus[0]}"
        raise NoGpuError(cause, hint=f"{classic.pip}, or name the backend to build for another GPU")
    if not rtx.info().installed:
        hint = f"{rtx.pip}, which needs no GPU" + (f", or {classic.pip}" if gpus else "")
        raise BackendNotInstalledError("no TensorRT is installed", hint=hint)
    _require(rtx)
    return rtx


def _require(backend: Backend) -> None:
    backend.load()
    info = backend.info()
    if info.usable:
        return
    if backend.needs_gpu and not list_gpus():
        hint = "use backend tensorrt-rtx, which builds without one"
        raise NoGpuError("needs an NVIDIA GPU to build, and there is none", source=backend.name, hint=hint)
    raise NotSupportedError(f"cannot build here: {info.reason}", source=backend.name, hint=info.hint)


def backend_named(name: str) -> Backend:
    """A backend, whether or not it can be used here."""
    backend: Backend = importlib.import_module(_BACKENDS[name]).BACKEND
    return backend
