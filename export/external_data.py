"""ONNX external data: weights in files beside the model.

The model names those files, so the names are untrusted: only a regular file inside the model's own
folder is read. Links are refused, symbolic and hard ones alike, and each part of the path is opened
relative to the one before without following links, so that nothing can be swapped in between.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from convbn.errors import BadInputError
from convbn.export.files import reason
from convbn.export.tensors import declared_bytes, iterate_tensors

if TYPE_CHECKING:
    import onnx

__all__ = ["embed_external_data", "is_external", "open_inside"]

_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
# Tied weights may share bytes, but a small file read a thousand times over is an attack on the memory.
_MAX_REREADS = 4


@dataclass
class _DataFile:
    stream: BinaryIO
    size: int
    read: int = 0


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's bytes lie in another file."""
    return tensor.data_location == _EXTERNAL


def embed_external_data(model: onnx.ModelProto, folder: Path) -> int:
    """Read the external data of a model into it, in place.

    Args:
        model: its external tensors become ordinary ones with ``raw_data``.
        folder: where the model file lies; data is read only from inside it.

    Returns:
        How many tensors were read.

    Raises:
        BadInputError: a location leads out of the folder, a file is missing or shorter than the
            model says, or a length contradicts the tensor's shape. The message names the tensor.
    """
    count = 0
    with ExitStack() as stack:
        files: dict[str, _DataFile] = {}
        for tensor in iterate_tensors(model):
            if not is_external(tensor):
                continue
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            if location not in files:
                stream = stack.enter_context(open_inside(folder, location, tensor.name))
                files[location] = _DataFile(stream, os.fstat(stream.fileno()).st_size)
            tensor.raw_data = _read(tensor, entries, files[location], location)
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            count += 1
    return count


def open_inside(folder: Path, location: str, tensor: str) -> BinaryIO:
    """Open a file that must lie inside a folder, following no link.

    Args:
        folder: the model's folder, trusted.
        location: relative path with ``/``, untrusted.
        tensor: for the message.

    Raises:
        BadInputError: the path is absolute, climbs, crosses a link, or names no regular file.
    """
    parts = PurePosixPath(location).parts
    shown = f"external data {location!r} of tensor {tensor!r}"
    unsafe = PurePosixPath(location).is_absolute() or ".." in parts or "\\" in location or "\0" in location
    if not parts or unsafe or Path(location).drive:
        raise BadInputError(f"{shown} is not a path inside the model's folder", hint="it was not read")
    try:
        descriptor = _open_parts(folder, parts)
    except FileNotFoundError as error:
        raise BadInputError(f"{shown} is missing", hint=f"put it into {folder}") from error
    except OSError as error:
        hint = "links are not followed; put the file itself beside the model"
        raise BadInputError(f"{shown} cannot be opened: {reason(error)}", hint=hint) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{shown} is not a regular file")
    hint = "a second name may lie outside the model's folder; put a copy there"
    raise BadInputError(f"{shown} is a hard link", hint=hint)


def _open_parts(folder: Path, parts: tuple[str, ...]) -> int:
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if os.open not in os.supports_dir_fd:  # Windows: no relative opening, so links are looked for first
        path = folder.joinpath(*parts)
        if Path(os.path.realpath(path)) != Path(os.path.realpath(folder)).joinpath(*parts):
            raise OSError(0, "it is a link")
        return os.open(path, flags)
    flags |= os.O_NOFOLLOW
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            child = os.open(part, flags | os.O_DIRECTORY, dir_fd=parent)
            os.close(parent)
            parent = child
        return os.open(parts[-1], flags, dir_fd=parent)
    finally:
        os.close(parent)


def _read(tensor: onnx.TensorProto, entries: dict[str, str], file: _DataFile, location: str) -> bytes:
    needed = declared_bytes(tensor)
    shown = f"external data {location!r} of tensor {tensor.name!r}"
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(needed)))
    except ValueError as error:
        raise BadInputError(f"{shown} has an offset or length that is no number") from error
    if length != needed:
        raise BadInputError(f"{shown} has {length} bytes where its shape needs {needed}")
    if offset < 0 or offset + needed > file.size:
        raise BadInputError(f"{shown} ends at byte {offset + needed}, but the file has {file.size} bytes")
    file.read += needed
    if file.read > _MAX_REREADS * file.size:
        raise BadInputError(
            f"the tensors that share external data {location!r} overlap more than {_MAX_REREADS} times"
        )
    try:
        file.stream.seek(offset)
        data = file.stream.read(needed)
    except OSError as error:
        raise BadInputError(f"{shown} cannot be read: {reason(error)}") from error
    if len(data) != needed:  # cut while it was read
        raise BadInputError(f"{shown} ends early, after {len(data)} of {needed} bytes")
    return data
