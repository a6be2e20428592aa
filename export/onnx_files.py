"""ONNX models on disk, both ways.

Loading reads the file once and parses once; saving serialises once. That and the import of onnx are the
whole cost, so that a small edit of a large model costs about what copying it through onnx does.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from convbn.errors import BadInputError, FileAccessError
from convbn.export.files import check_target, reason, write_atomically

if TYPE_CHECKING:
    import onnx

    from convbn.export.onnx_encoding import Weight

__all__ = ["PROTOBUF_LIMIT", "LoadedModel", "load_model", "read_model", "save_model"]

# protobuf's sizes are signed 32-bit numbers: neither its parser nor its writer goes beyond.
PROTOBUF_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is known of the file it came from.

    Attributes:
        model: the model; its external data is embedded where that was asked for.
        sha256: of the model file itself; external data is not covered.
        size: of the model file, bytes.
        external: whether the file keeps weights in other files.
    """

    model: onnx.ModelProto
    sha256: str
    size: int
    external: bool


def load_model(path: str | os.PathLike[str], *, external_data: bool = True) -> onnx.ModelProto:
    """Load an ONNX model; :func:`read_model` without the facts about the file."""
    return read_model(path, external_data=external_data).model


def read_model(path: str | os.PathLike[str], *, external_data: bool = True) -> LoadedModel:
    """Load an ONNX model and hash its file in the same reading.

    Args:
        path: an ONNX file in binary protobuf.
        external_data: read weights that lie in other files, which must be regular files inside the
            model's folder, reached without links. When false such tensors stay references.

    Returns:
        The model, whose tensors hold as many bytes as their shapes need.

    Raises:
        FileAccessError: the file cannot be read.
        BadInputError: it is not an ONNX model, is damaged, or its external data is missing, too short
            or outside the model's folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    from convbn.export.external_data import embed_external_data, is_external
    from convbn.export.tensors import check_embedded, iterate_tensors

    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        hint = "it may be cut short or of another format"
        raise BadInputError("is not an ONNX model", source=path, hint=hint) from error
    size = len(data)
    del data
    if not model.HasField("graph"):
        raise BadInputError("is not an ONNX model: it holds no graph", source=path)
    if model.ir_version >= 3 and not model.opset_import:
        raise BadInputError("names no opset, so its operators have no meaning", source=path)
    try:
        external = False
        for tensor in iterate_tensors(model):
            if is_external(tensor):
                external = True
            else:
                check_embedded(tensor)
        if external and external_data:
            embed_external_data(model, Path(path).absolute().parent)
    except BadInputError as error:
        raise BadInputError(error.cause, source=path, hint=error.hint) from error
    return LoadedModel(model, digest, size, external)


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an ONNX model, all of it or nothing.

    A model that protobuf cannot hold (2 GiB) is written with its large initializers in a second file
    beside it, ``<name>.<hash>.data``. That file is complete before the model that refers to it
    appears, and its name follows from its content, so no kill leaves a model with wrong weights.

    Args:
        model: unchanged.
        path: the target; a symbolic link is followed.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileAccessError: the target cannot be written.
        BadInputError: a tensor of the model still refers to external data, which the new file would
            not find, or the model is too large outside of its initializers.
    """
    from convbn.export.external_data import is_external
    from convbn.export.onnx_encoding import encode_model, pieces_of, total_bytes
    from convbn.export.tensors import iterate_tensors

    target = check_target(path, overwrite=overwrite)
    for tensor in iterate_tensors(model):
        if is_external(tensor):
            hint = "load it with its external data"
            raise BadInputError(f"tensor {tensor.name!r} refers to another file", source=path, hint=hint)
    parts = encode_model(model)
    if total_bytes(parts) > PROTOBUF_LIMIT:
        weights = [part for part in parts if not isinstance(part, bytes)]
        digest = hashlib.sha256()
        for piece in _on_pages(weights):
            digest.update(piece)
        location = f"{target.stem}.{digest.hexdigest()[:16]}.data"
        parts = encode_model(model, location=location)
        if total_bytes(parts) > PROTOBUF_LIMIT:
            raise BadInputError("is too large for ONNX even without its large initializers", source=path)
        # What lies there under this name has the same bytes, or is damaged.
        write_atomically(target.with_name(location), partial(_write, _on_pages(weights)), overwrite=True)
    write_atomically(path, partial(_write, pieces_of(parts)), overwrite=overwrite)


def _on_pages(weights: list[Weight]) -> Iterator[bytes]:
    from convbn.export.onnx_encoding import PAGE, pieces_of

    for piece in pieces_of(weights):
        yield piece
        yield bytes(-len(piece) % PAGE)


def _write(pieces: Iterable[bytes], file: BinaryIO) -> None:
    for piece in pieces:
        file.write(piece)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)  # before opening: a pipe would wait for its writer
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise FileAccessError("is a device or a pipe, not a regular file", source=path)
        with open(path, "rb") as file:
            if status.st_size > PROTOBUF_LIMIT:
                hint = "save it with external data"
                raise BadInputError("is larger than the 2 GiB an ONNX file can have", source=path, hint=hint)
            data = file.read()
    except FileNotFoundError as error:
        raise FileAccessError("does not exist", source=path) from error
    except OSError as error:
        raise FileAccessError(f"cannot be read: {reason(error)}", source=path) from error
    if not data:
        raise BadInputError("is empty", source=path)
    return data
