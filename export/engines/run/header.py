"""What the first bytes of an engine file say, without loading it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from convbn.errors import BadInputError
from convbn.export.files.atomic import reason
from convbn.export.files.sniff import ArtifactKind, sniff

__all__ = ["EngineHeader", "read_header"]

_BACKENDS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
# Where NVIDIA's trtexec (--getPlanVersionOnly) reads the version, if the serialisation is of its kind 0.
_KIND = slice(4, 8)
_VERSION = slice(24, 28)


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
    try:
        with open(path, "rb") as file:
            head, size = file.read(_VERSION.stop), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise BadInputError(f"cannot be read: {reason(error)}", source=path) from error
    backend = _BACKENDS.get(head[:4])
    known = backend is not None and len(head) == _VERSION.stop and not any(head[_KIND])
    return EngineHeader(backend, ".".join(map(str, head[_VERSION])) if known else None, size)
