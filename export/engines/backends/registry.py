"""The backends, classic TensorRT and TensorRT-RTX: how they differ, and the choice between them."""

from __future__ import annotations

from convbn.errors import NotSupportedError, UsageError
from convbn.export.engines.backends.backend import Backend, BackendInfo
from convbn.export.engines.backends.gpus import Gpu, list_gpus
from convbn.export.engines.errors import BackendNotInstalledError, NoGpuError

__all__ = ["available_backends", "backend_named", "choose_backend"]


def _classic_serves(gpu: Gpu) -> bool:
    return gpu.compute_capability >= (7, 5)


def _rtx_serves(gpu: Gpu) -> bool:
    # A default engine is for 8.0, 8.6, 8.9 and 12.0 on; Hopper and data-centre Blackwell (9 to 11) are
    # classic TensorRT's, and Turing (7.5) is not part of the default.
    return gpu.compute_capability[0] == 8 or gpu.compute_capability[0] >= 12


_BACKENDS = {
    backend.name: backend
    for backend in (
        # Versions 10.12 to 11. It times its kernels on the GPU it builds for, so it needs one.
        Backend(
            name="tensorrt",
            modules=("tensorrt",),
            pip="pip install 'convbn[tensorrt]'",
            needs_gpu=True,
            serves=_classic_serves,
            cli="trtexec",
            # The cache's file is named after the GPU.
            gpu_only=frozenset({"timing_cache"}),
            unhonoured={
                "compute_capabilities": "it builds for the GPU that is here; see hardware-compatibility"
            },
        ),
        # Builds without a GPU; its engines run on RTX GPUs and are finished there by a JIT.
        Backend(
            name="tensorrt-rtx",
            # The second is what the first imports; where only binary wheels are allowed it comes alone.
            modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
            pip="pip install 'convbn[rtx]'",
            needs_gpu=False,
            serves=_rtx_serves,
            cli="tensorrt_rtx",
            unhonoured={
                "optimization_level": "every level gives the same engine",
                "hardware_compatibility": "name the GPUs with compute-capability",
                "version_compatible": "it comes without the lean runtime that such an engine carries",
                "timing_cache": "it times no kernels while it builds; the runtime cache is its counterpart",
            },
            # Without a driver the builder fails on them in its compiler.
            gpu_only=frozenset({"refit", "strip_weights"}),
        ),
    )
}


def available_backends() -> list[BackendInfo]:
    """State of every backend on this machine, usable or not."""
    return [backend.info() for backend in _BACKENDS.values()]


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
        return _usable(_BACKENDS[name])
    if name != "auto":
        raise UsageError(f"there is no backend {name!r}", hint=f"choose auto, {' or '.join(_BACKENDS)}")
    gpus = list_gpus()
    classic, rtx = _BACKENDS.values()
    if gpus and classic.serves(gpus[0]) and classic.info().usable:
        return classic
    if gpus and not rtx.serves(gpus[0]):
        cause = f"TensorRT-RTX engines do not run on this GPU, {gpus[0]}"
        raise NoGpuError(cause, hint=f"{classic.pip}, or name the backend to build for another GPU")
    if not rtx.info().installed:
        hint = f"{rtx.pip}, which needs no GPU" + (f", or {classic.pip}" if gpus else "")
        raise BackendNotInstalledError("no TensorRT is installed", hint=hint)
    return _usable(rtx)


def _usable(backend: Backend) -> Backend:
    backend.load()
    info = backend.info()
    if info.usable:
        return backend
    if backend.needs_gpu and not list_gpus():
        hint = "use backend tensorrt-rtx, which builds without one"
        raise NoGpuError("needs an NVIDIA GPU to build, and there is none", source=backend.name, hint=hint)
    raise NotSupportedError(f"cannot build here: {info.reason}", source=backend.name, hint=info.hint)


def backend_named(name: str) -> Backend:
    """A backend, whether or not it can be used here."""
    return _BACKENDS[name]
