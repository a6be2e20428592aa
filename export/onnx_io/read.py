"""ONNX models on disk, read.

Large weights stay where they are: a model is opened without their bytes, which are fetched when somebody
asks for them. So looking into a large model costs little, and it need not fit into memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.errors import BadInputError
from convbn.export.files.atomic import file_access, open_regular
from convbn.export.onnx_io.encoding import PROTOBUF_LIMIT
from convbn.export.onnx_io.write import save_model

if TYPE_CHECKING:
    import onnx

    from convbn.export.onnx_io.external_data import DataFiles

__all__ = [
    "PROTOBUF_LIMIT",
    "OpenModel",
    "load_model",
    "open_model",
    "read_model",
    "save_model",
]


@dataclass(frozen=True)
class OpenModel:
    """A model whose large weights were left in the files they lie in.

    Attributes:
        model: the model; initializers of the main graph of 64 KiB and more hold a reference in the place of
            their bytes, those of the model file itself to a location that only `files` knows.
        files: reads those bytes.
        sha256: of the model file itself, if it was asked for; external data is not covered.
        size: of the model file, bytes.
        own: the tensors whose bytes lie in the model file itself.
        outside: those whose bytes the model keeps in other files.
    """

    model: onnx.ModelProto
    files: DataFiles
    sha256: str | None
    size: int
    own: Sequence[onnx.TensorProto]
    outside: Sequence[onnx.TensorProto]

    @property
    def stored(self) -> int:
        """Bytes of the model file and of the files beside it that hold its weights."""
        return self.size + self.files.beside

    @property
    def external(self) -> bool:
        """Whether the file keeps weights in other files."""
        return bool(self.outside)


_NO_OPSET = 1 << 31
"""Past what onnx and the runtimes hold a version in."""


def load_model(path: str | os.PathLike[str], *, external_data: bool = True) -> onnx.ModelProto:
    """Load an ONNX model; :func:`read_model` without the facts about the file."""
    return read_model(path, external_data=external_data, hashed=False).model


def read_model(path: str | os.PathLike[str], *, external_data: bool = True, hashed: bool = True) -> OpenModel:
    """Load an ONNX model, weights and all.

    Args:
        path: an ONNX file in binary protobuf.
        external_data: read weights that lie in other files, which must be regular files inside the
            model's folder, reached without links. When false such tensors stay references.
        hashed: hash the file, too.

    Returns:
        The model, whose tensors hold as many bytes as their shapes need; its files are closed.

    Raises:
        FileAccessError: the file cannot be read.
        BadInputError: it is not an ONNX model, is damaged, or its external data is missing, too short,
            overlapping or outside the model's folder.
    """
    from convbn.export.onnx_io.external_data import embed_external_data, is_external

    opened = open_model(path, external_data=external_data, hashed=hashed)
    wanted = (*opened.own, *opened.outside) if external_data else opened.own
    with opened.files as files, _about(path):
        embed_external_data((tensor for tensor in wanted if is_external(tensor)), files)
    return opened


def open_model(path: str | os.PathLike[str], *, external_data: bool = True, hashed: bool = True) -> OpenModel:
    """Open an ONNX model and leave its large weights where they are.

    Every tensor is held against its shape, and external data against the files it lies in, before
    anything is allocated for it.

    Args:
        path: an ONNX file in binary protobuf.
        external_data: when false, weights in other files are not looked at.
        hashed: hash the file, which takes about as long as copying it.

    Returns:
        The model and its files, which are the caller's to close.

    Raises:
        FileAccessError: see :func:`read_model`.
        BadInputError: see :func:`read_model`.
    """
    file = _open(path)
    try:
        size = os.fstat(file.fileno()).st_size
        with _about(path):
            opened = _opened(file, size, path, external_data=external_data)
            if not hashed:
                return opened
            file.seek(0)
            return replace(opened, sha256=hashlib.file_digest(file, "sha256").hexdigest())
    except BaseException:
        file.close()
        raise


def _opened(
    file: BufferedReader, size: int, path: str | os.PathLike[str], *, external_data: bool
) -> OpenModel:
    from convbn.export.onnx_io.external_data import DataFiles, embed_external_data, is_external, location_of
    from convbn.export.onnx_io.validate import check_embedded, declared_bytes, iterate_tensors
    from convbn.export.onnx_io.wire import MIN_EXTERNAL

    files = DataFiles(Path(path).absolute().parent, file, path)
    model = _parsed(file, size, files.own_location)
    if not model.HasField("graph"):
        raise BadInputError("is not an ONNX model: it holds no graph")
    if model.ir_version >= 3 and not model.opset_import:
        raise BadInputError("names no opset, so its operators have no meaning")
    odd = [entry.version for entry in model.opset_import if not 0 <= entry.version < _NO_OPSET]
    if odd:
        raise BadInputError(f"there is no opset {odd[0]}")
    own, outside = [], []
    for tensor in iterate_tensors(model):
        if not is_external(tensor):
            check_embedded(tensor)
        elif location_of(tensor) == files.own_location:
            files.range_of(tensor)
            own.append(tensor)
        else:
            outside.append(tensor)
    if outside and external_data:
        files.check(model)
        initializers = list(model.graph.initializer)
        large = {id(tensor) for tensor in initializers if declared_bytes(tensor) >= MIN_EXTERNAL}
        # Shape inference looks into small tensors, and onnx's checker opens the files of those in bodies.
        embed_external_data((tensor for tensor in outside if id(tensor) not in large), files)
    return OpenModel(model, files, None, size, own, outside)


def _parsed(file: BufferedReader, size: int, location: str) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    from convbn.export.onnx_io.wire import detach

    data = detach(file, size, location)
    if data is None:
        file.seek(0)
        data = file.read()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        hint = "it may be cut short or of another format"
        raise BadInputError("is not an ONNX model", hint=hint) from error
    return model


@contextmanager
def _about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names the file in errors that leave the block."""
    try:
        with file_access(path):
            yield
    except BadInputError as error:
        raise BadInputError(error.cause, source=path, hint=error.hint) from error


def _open(path: str | os.PathLike[str]) -> BufferedReader:
    file = open_regular(path)
    size = os.fstat(file.fileno()).st_size
    if size in range(1, PROTOBUF_LIMIT + 1):
        return file
    file.close()
    if size == 0:
        raise BadInputError("is empty", source=path)
    hint = "save it with external data"
    raise BadInputError("is larger than the 2 GiB an ONNX file can have", source=path, hint=hint)
