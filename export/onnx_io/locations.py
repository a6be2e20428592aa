"""Which files an ONNX model keeps its weights in, and how large they are, told without reading any of them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from convbn.errors import BadInputError
from convbn.export.files.atomic import file_access
from convbn.export.files.sniff import ArtifactKind, sniff

__all__ = ["external_locations", "stored_bytes"]


def external_locations(path: str | os.PathLike[str]) -> list[str]:
    """The files that a model names, relative to its folder; nothing for what is no model, which its reader will say.

    Raises:
        FileAccessError: it cannot be read.
    """
    with file_access(path), open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"location") < 0:
                return []
    try:
        return _locations(path)
    except BadInputError:
        return []


def stored_bytes(path: str | os.PathLike[str]) -> int:
    """The size of a file; of an ONNX model with the files beside it that hold its weights.

    Raises:
        FileAccessError: it cannot be read.
    """
    with file_access(path):
        size = os.stat(path).st_size
        try:
            beside = external_locations(path) if sniff(path) is ArtifactKind.ONNX else []
        except BadInputError:
            beside = []  # no model, which its reader will say
        files = (Path(path).parent / name for name in beside if "\0" not in name)
        return size + sum(file.stat().st_size for file in files if file.is_file())


def _locations(path: str | os.PathLike[str]) -> list[str]:
    from convbn.export.onnx_io.external_data import is_external, location_of
    from convbn.export.onnx_io.read import open_model
    from convbn.export.onnx_io.validate import iterate_tensors

    opened = open_model(path, external_data=False, hashed=False)
    opened.files.close()
    outside = {location_of(tensor) for tensor in iterate_tensors(opened.model) if is_external(tensor)}
    return sorted(outside - {opened.files.own_location})
