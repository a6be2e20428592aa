"""An engine file into an engine of TensorRT. An engine is a program: it is loaded only on request."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbn.errors import FileAccessError
from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.backends.logs import collect, logger_of
from convbn.export.engines.backends.registry import backend_named
from convbn.export.engines.errors import EngineIncompatibleError, UntrustedEngineError
from convbn.export.engines.run.cuda import require_gpu
from convbn.export.engines.run.header import read_header
from convbn.export.engines.sidecar import read_sidecar, sidecar_path
from convbn.export.files.atomic import reason

__all__ = ["LoadedEngine", "load_engine"]

_WHY = {
    "VERSION_MISMATCH": "it is of another version",
    "UNSUPPORTED_CC": "it was not built for this GPU",
    "OLD_CUDA_DRIVER": "the driver is too old",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory",
    "MALFORMED_ENGINE": "it is damaged",
    "CUDA_ERROR": "CUDA failed",
}


@dataclass(frozen=True)
class LoadedEngine:
    """An engine together with what must outlive it.

    Attributes:
        trt: the backend's module.
        backend: the backend.
        runtime: TensorRT's ``Runtime``.
        engine: TensorRT's ``ICudaEngine``.
    """

    trt: Any
    backend: Backend
    runtime: Any
    engine: Any


def load_engine(path: str | os.PathLike[str], *, trust: bool) -> LoadedEngine:
    """Load an engine that the caller trusts.

    Args:
        path: the engine. If a sidecar is beside it, the engine's hash must be the one in it.
        trust: an engine holds machine code, and TensorRT does not defend itself against a hostile one;
            true says that this one comes from a trusted place.

    Raises:
        UntrustedEngineError: `trust` is false.
        EngineMismatchError: the sidecar describes another engine.
        NoGpuError: there is no GPU.
        EngineIncompatibleError: it does not load here.
        BackendNotInstalledError: its TensorRT is not here.
        BadInputError: it is no engine.
        FileAccessError: it cannot be read.
    """
    header = read_header(path)
    if not trust:
        hint = "load it with trust=True if you trust where it comes from"
        raise UntrustedEngineError("an engine is a program", source=path, hint=hint)
    if sidecar_path(path).exists():
        read_sidecar(path)
    require_gpu(source=path)
    backend = backend_named(header.backend or "tensorrt")
    trt = backend.load()
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileAccessError(f"cannot be read: {reason(error)}", source=path) from error
    with collect(trt) as log:
        runtime = trt.Runtime(logger_of(trt))
        causes = _diagnosis(trt, runtime, data)
        engine = None if causes else runtime.deserialize_cuda_engine(data)
        if engine is None:
            told = " and ".join(causes) or log.first_error() or "TensorRT gives no reason"
            version = f"{backend.name} {trt.__version__}"
            built = f", built with {header.version}" if header.version else ""
            raise EngineIncompatibleError(
                f"does not load in {version}{built}: {told}", source=path, hint="build it again here"
            )
    return LoadedEngine(trt, backend, runtime, engine)


def _diagnosis(trt: Any, runtime: Any, data: bytes) -> list[str]:
    """Why the engine cannot be used, where the backend has a check for that; TensorRT-RTX has."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    validity, bits = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return []
    flags = trt.EngineInvalidityDiagnostics.__members__
    return [_WHY.get(name, name) for name, flag in flags.items() if int(bits) & int(flag)]
