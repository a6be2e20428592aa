"""The model that an engine is built from, as bytes with a hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from convbn.export.onnx_io.encoding import encode_model, pieces_of, total_bytes
from convbn.export.onnx_io.read import PROTOBUF_LIMIT, OpenModel, read_model

if TYPE_CHECKING:
    import onnx

__all__ = ["Source", "read_source"]


@dataclass(frozen=True)
class Source:
    """A model to parse.

    Attributes:
        model: the model, with its weights.
        data: its bytes; None where it is too large for one protobuf message.
        sha256: of the model file, or of `data` where there is none.
        size: of the same, bytes.
        shown: path, or a name for messages.
        has_file: whether `shown` is a path.
    """

    model: onnx.ModelProto
    data: bytes | None
    sha256: str
    size: int
    shown: str
    has_file: bool

    def without_names(self, dimensions: Set[str]) -> Source:
        """To be parsed with some open dimensions of the inputs unnamed; hash and size stay the model's."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        for value in model.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in dimensions:
                    dim.ClearField("dim_param")
        data = None if self.data is None else b"".join(pieces_of(encode_model(model)))
        return replace(self, model=model, data=data, has_file=False)


def read_source(model: onnx.ModelProto | str | os.PathLike[str]) -> Source:
    """Bring a model into the form that a parser takes.

    External data is read here, under this package's rules, so that TensorRT's parser opens no file
    that the model names. Only beyond protobuf's 2 GiB must it do so itself, after the same check.

    Args:
        model: a model, or the path of one.

    Raises:
        FileAccessError: the file cannot be read.
        BadInputError: it is no ONNX model, or its external data is not in order.
    """
    path = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    loaded: OpenModel | None = None
    if path is not None:
        loaded = read_model(path)
        proto = loaded.model
    else:
        proto = model  # type: ignore[assignment]  # what is no path is a model
    parts = encode_model(proto)
    data = b"".join(pieces_of(parts)) if total_bytes(parts) <= PROTOBUF_LIMIT else None
    if loaded is not None and path is not None:
        return Source(proto, data, loaded.sha256 or "", loaded.size, path, True)
    digest = hashlib.sha256()
    for piece in pieces_of(parts):
        digest.update(piece)
    return Source(proto, data, digest.hexdigest(), total_bytes(parts), "the model", False)
