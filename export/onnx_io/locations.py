"""Which files an ONNX model keeps its weights in, told without reading any of them."""

from __future__ import annotations

import mmap
import os

from convbn.errors import BadInputError
from convbn.export.files.atomic import file_access

__all__ = ["external_locations"]


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
    from convbn.export.onnx_io.external_data import is_external, location_of
    from convbn.export.onnx_io.read import load_model
    from convbn.export.onnx_io.validate import iterate_tensors

    try:
        model = load_model(path, external_data=False)
    except BadInputError:
        return []
    return sorted({location_of(tensor) for tensor in iterate_tensors(model) if is_external(tensor)})
