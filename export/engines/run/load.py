"""An engine file: what its first bytes say, and how it becomes an engine of TensorRT.

An engine is a program. :func:`load_engine` is the only place that hands one to TensorRT, and it asks for trust
before it does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbn.errors import BadInputError
from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.backends.logs import collect, logger_of
from convbn.export.engines.backends.registry import backend_named
from convbn.export.engines.errors import EngineIncompatibleError, UntrustedEngineError
from convbn.export.engines.run.cuda import require_gpu
from convbn.export.engines.sidecar import read_sidecar
from convbn.export.files.atomic import file_access
from convbn.export.files.sidecar import sidecar_path
from convbn.export.files.sniff import ArtifactKind, sniff

__all__ = ["EngineFile", "EngineHeader", "LoadedEngine", "load_engine", "read_header", "require_trust"]

_BACKENDS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
# Where NVIDIA's trtexec (--getPlanVersionOnly) reads the version, if the serialisation is of its kind 0.
_KIND = slice(4, 8)
_VERSION = slice(24, 28)
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
class EngineHeader:
    """The start of an engine.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``; None for a kind of engine that is only known by its mark.
        version: of the TensorRT that built it, if the header has it in the known place.
        size: of the file, bytes.
    """

    backend: str | None
    version: str | None
    size: int

    @property
    def runs_in(self) -> str:
        """The backend that is to load it."""
        return self.backend or "tensorrt"


def read_header(path: str | os.PathLike[str]) -> EngineHeader:
    """Read the header of an engine file.

    Args:
        path: the file; nothing of it is executed.

    Raises:
        BadInputError: it is no engine.
        FileAccessError: it cannot be read.
    """
    kind = sniff(path)
    if kind is not ArtifactKind.ENGINE:
        raise BadInputError(f"is no TensorRT engine but a {kind.value}", source=path)
    with file_access(path), open(path, "rb") as file:
        head, size = file.read(_VERSION.stop), os.fstat(file.fileno()).st_size
    backend = _BACKENDS.get(head[:4])
    known = backend is not None and len(head) == _VERSION.stop and not any(head[_KIND])
    return EngineHeader(backend, ".".join(map(str, head[_VERSION])) if known else None, size)


@dataclass(frozen=True)
class EngineFile:
    """A file with an engine, and whether it may be loaded.

    Attributes:
        path: of the file.
        trust: it was built here just now, or the user said that it comes from a trusted place.
    """

    path: Path
    trust: bool = False


@dataclass(frozen=True)
class LoadedEngine:
    """An engine together with what must outlive it.

    Attributes:
        trt: the backend's module.
        backend: the backend.
        runtime: TensorRT's ``Runtime``.
        engine: TensorRT's ``ICudaEngine``.
        sidecar: the content of the JSON file beside the engine, if there is one.
    """

    trt: Any
    backend: Backend
    runtime: Any
    engine: Any
    sidecar: Mapping[str, Any] | None


def require_trust(path: str | os.PathLike[str], trust: bool) -> None:
    """Refuse an engine that nobody said is trusted.

    Raises:
        UntrustedEngineError: `trust` is false.
    """
    if not trust:
        hint = "say trust=True, or --trust-engine, if you trust where it comes from"
        raise UntrustedEngineError("an engine is a program", source=path, hint=hint)


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
    require_trust(path, trust)
    sidecar = read_sidecar(path) if sidecar_path(path).exists() else None
    require_gpu(source=path)
    backend = backend_named(header.runs_in)
    trt = backend.load()
    with file_access(path):
        data = Path(path).read_bytes()
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
    return LoadedEngine(trt, backend, runtime, engine, sidecar)


def _diagnosis(trt: Any, runtime: Any, data: bytes) -> list[str]:
    """Why the engine cannot be used, where the backend has a check for that; TensorRT-RTX has."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    validity, bits = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return []
    flags = trt.EngineInvalidityDiagnostics.__members__
    return [_WHY.get(name, name) for name, flag in flags.items() if int(bits) & int(flag)]
