"""What kind of artefact a file is, told by its bytes: a suffix can lie, and often does.

Nothing is parsed whole and nothing is executed; neither torch nor onnx is imported.
"""

from __future__ import annotations

import enum
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from convbn.errors import BadInputError, ConvBNError
from convbn.export.checkpoints.limits import ZIP_DAMAGE, Limits
from convbn.export.checkpoints.pickle_scan import LEGACY_TORCH_MAGIC, code_globals
from convbn.export.files.atomic import file_access, open_regular
from convbn.export.onnx_io.wire import is_onnx_model

__all__ = ["ArtifactKind", "sniff"]


class ArtifactKind(enum.Enum):
    """Kinds of file that convbn can name."""

    ONNX = "ONNX model"
    STATE_DICT = "PyTorch state dict"
    PICKLED = "pickle that holds more than tensors"
    SAFETENSORS = "safetensors file"
    PT2 = "torch.export archive"
    TORCHSCRIPT = "TorchScript archive"
    ENGINE = "TensorRT engine"
    AOT_INDUCTOR = "AOTInductor package"
    EXECUTORCH = "ExecuTorch program"
    ONNXRUNTIME = "onnxruntime model"


# `vtrt` opens an engine of TensorRT-RTX, the other two were seen on classic TensorRT.
_ENGINE_MAGICS = (b"vtrt", b"ftrt", b"ptrt")
# Identifiers of flatbuffers; ExecuTorch counts its versions in two digits.
_FLATBUFFERS = ((b"ORTM", ArtifactKind.ONNXRUNTIME), (b"ET", ArtifactKind.EXECUTORCH))
_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras?)", "export it to ONNX first"),
)
_KNOWN = "expected ONNX, a PyTorch checkpoint, safetensors, .pt2, TorchScript or a TensorRT engine"


def sniff(path: str | os.PathLike[str], *, max_pickle_mib: int = Limits.pickle_mib) -> ArtifactKind:
    """Tell the kind of a file from its content.

    Args:
        path: the file; its name plays no part.
        max_pickle_mib: cap on the size of a pickle that is looked through, in MiB.

    Returns:
        Its kind. A damaged body behind a good start is left to the reader of that kind to find.

    Raises:
        FileAccessError: the file is missing, a folder, a device or unreadable.
        BadInputError: the file is empty, cut short, or none of the kinds.
    """
    try:
        with file_access(path), open_regular(path) as file:
            return _sniff(file, os.fstat(file.fileno()).st_size, max_pickle_mib)
    except ConvBNError as error:
        raise type(error)(error.cause, source=Path(path), hint=error.hint) from error


def _sniff(file: BinaryIO, size: int, max_pickle_mib: int) -> ArtifactKind:
    head = file.read(32)
    file.seek(0)
    if not head:
        raise BadInputError("is empty")
    if head[:4] in _ENGINE_MAGICS:
        return ArtifactKind.ENGINE
    for mark, kind in _FLATBUFFERS:
        if head[4:8].startswith(mark) and head[6:8].isalnum():
            return kind
    if head[:4] == b"PK\x03\x04":
        return _sniff_zip(file, max_pickle_mib)
    if head[8:9] == b"{":
        (length,) = struct.unpack("<Q", head[:8])
        if length > size - 8:
            raise BadInputError(
                f"is a safetensors file cut short: its header has {length} bytes, the file {size}"
            )
        return ArtifactKind.SAFETENSORS
    if head.startswith(LEGACY_TORCH_MAGIC) or (head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5")):
        return _pickle_kind(file, max_pickle_mib)
    for magic, name, hint in _OTHER_FORMATS:
        if head.startswith(magic):
            raise BadInputError(f"is {name}", hint=hint)
    if is_onnx_model(file, size):
        return ArtifactKind.ONNX
    raise BadInputError(f"is no model file: it begins with {head[:8].hex(' ')}", hint=_KNOWN)


def _sniff_zip(file: BinaryIO, max_pickle_mib: int) -> ArtifactKind:
    try:
        with zipfile.ZipFile(file) as archive:
            # Everything lies in one folder whose name is free.
            members = {name.partition("/")[2] for name in archive.namelist()}
            if any(name.startswith("data/aotinductor/") for name in members):
                return ArtifactKind.AOT_INDUCTOR
            if "archive_format" in members or "models/model.json" in members:
                return ArtifactKind.PT2
            if "serialized_exported_program.json" in archive.namelist():
                return ArtifactKind.PT2
            if any(name.startswith("code/") for name in members):
                return ArtifactKind.TORCHSCRIPT
            if "data.pkl" in members:
                file.seek(0)
                return _pickle_kind(file, max_pickle_mib)
            shown = ", ".join(sorted(archive.namelist())[:3]) or "nothing"
    except ZIP_DAMAGE as error:
        raise BadInputError(f"is a damaged zip archive, perhaps cut short: {error}") from error
    raise BadInputError(f"is a zip archive of another kind: it holds {shown}", hint=_KNOWN)


def _pickle_kind(file: BinaryIO, max_pickle_mib: int) -> ArtifactKind:
    return ArtifactKind.PICKLED if code_globals(file, max_mib=max_pickle_mib) else ArtifactKind.STATE_DICT
