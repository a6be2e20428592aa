"""ONNX models on disk, written.

A model is written under a temporary name, can be opened there, and then gets its own. Its data file, if it
needs one, is complete by then, and its name follows from its content: no kill leaves a model with
wrong weights.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias, get_args

from convbn.errors import BadInputError, UsageError
from convbn.export.files.atomic import StagedFile, check_target, file_access
from convbn.export.onnx_io.encoding import (
    PROTOBUF_LIMIT,
    Reference,
    Weight,
    encode_model,
    large_raw_data,
    pieces_of,
    refer,
    total_bytes,
)
from convbn.export.onnx_io.wire import MIN_EXTERNAL

if TYPE_CHECKING:
    import onnx

    from convbn.export.onnx_io.external_data import StoredWeights

__all__ = ["EXTERNAL_DATA", "ExternalData", "Staged", "save_model", "staged_model"]

ExternalData: TypeAlias = Literal["auto", "always", "never"]
EXTERNAL_DATA: tuple[str, ...] = get_args(ExternalData)

# onnxruntime maps an external initializer straight from its file where it starts on a page.
_PAGE = 4096


def save_model(
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    external_data: ExternalData = "auto",
) -> None:
    """Write an ONNX model, all of it or nothing.

    Args:
        model: unchanged; it holds all of its weights.
        path: the target; a symbolic link is followed.
        overwrite: whether an existing file may be replaced.
        external_data: see :func:`staged_model`.

    Raises:
        FileAccessError: the target cannot be written.
        BadInputError: a tensor of the model still refers to external data, which the new file would
            not find, or the model is too large for the form that was asked for.
    """
    with staged_model(model, path, overwrite=overwrite, external_data=external_data):
        pass


@dataclass(frozen=True, slots=True)
class Staged:
    """A complete model under a temporary name.

    Attributes:
        path: in the target's folder.
        size: bytes of the model and of its data file.
    """

    path: Path
    size: int


@contextmanager
def staged_model(
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    external_data: ExternalData = "auto",
    weights: StoredWeights | None = None,
    was_external: bool = False,
) -> Iterator[Staged]:
    """Write an ONNX model beside its target, and move it there at the end of the block.

    Args:
        model: unchanged without ``weights``; with them its references change.
        path: the target; a symbolic link is followed.
        overwrite: whether an existing file may be replaced.
        external_data: ``always`` puts initializers of 1 KiB and more into a second file beside the model,
            ``<name>.<hash>.data``; ``never`` puts everything into the model; ``auto`` does the first for a
            model that had such files and for one beyond the 2 GiB that protobuf can hold.
        weights: the bytes of external tensors. They pass through piece by piece.
        was_external: whether the model had data files.

    Yields:
        The complete model. If the block raises, neither it nor a new data file stays.

    Raises:
        FileAccessError: see :func:`save_model`.
        BadInputError: see :func:`save_model`.
        UsageError: ``external_data`` is none of the three.
    """
    from convbn.export.onnx_io.external_data import is_external
    from convbn.export.onnx_io.validate import iterate_tensors

    if external_data not in EXTERNAL_DATA:
        raise UsageError(f"external data can be {', '.join(EXTERNAL_DATA)}, not {external_data!r}")
    target = check_target(path, overwrite=overwrite)
    if weights is None:
        for tensor in iterate_tensors(model):
            if is_external(tensor):
                hint = "load it with its external data"
                cause = f"tensor {tensor.name!r} refers to another file"
                raise BadInputError(cause, source=path, hint=hint)
    apart = external_data == "always" or (external_data == "auto" and was_external)
    with ExitStack() as undo:
        parts, beside = None, 0
        if not apart:
            stored = {} if weights is None else _stored(model, weights)
            parts = encode_model(model, weights=stored)
            if total_bytes(parts) > PROTOBUF_LIMIT:
                if external_data == "never":
                    hint = "let it have a data file"
                    raise BadInputError(
                        "is larger than the 2 GiB an ONNX file can have", source=path, hint=hint
                    )
                parts = None
        if parts is None:
            references, beside = _write_data(model, target, path, weights, undo)
            parts = encode_model(model, references=references)
            if total_bytes(parts) > PROTOBUF_LIMIT:
                raise BadInputError("is too large for ONNX even without its large initializers", source=path)
        with StagedFile(target, path) as staged:
            staged.write(lambda file: file.writelines(pieces_of(parts)))
            yield Staged(staged.path, total_bytes(parts) + beside)
            staged.move(target, overwrite=overwrite)
        undo.pop_all()


def _stored(model: onnx.ModelProto, weights: StoredWeights) -> dict[int, Weight]:
    """The bytes of external initializers, by index."""
    from convbn.export.onnx_io.external_data import is_external

    tensors = enumerate(model.graph.initializer)
    return {index: weights.of(tensor) for index, tensor in tensors if is_external(tensor)}


@dataclass(frozen=True, slots=True)
class _Moved:
    """A tensor whose bytes go into the data file, and its index if it is an initializer of the main graph."""

    tensor: onnx.TensorProto
    index: int | None
    weight: Weight
    key: object


def _moved(model: onnx.ModelProto, weights: StoredWeights | None) -> Iterator[_Moved]:
    from convbn.export.onnx_io.external_data import is_external

    for index, tensor in enumerate(model.graph.initializer):
        if is_external(tensor) and weights is not None:
            yield _Moved(tensor, index, weights.of(tensor), weights.key(tensor))
        elif (weight := large_raw_data(tensor, MIN_EXTERNAL)) is not None:
            yield _Moved(tensor, index, weight, index)
    if weights is not None:
        yield from _moved_from_bodies(model)


def _moved_from_bodies(model: onnx.ModelProto) -> Iterator[_Moved]:
    """Large initializers of bodies, where these alone would come near what protobuf can hold."""
    from convbn.fuse.frontends.onnx.model.graphs import graphs_below

    bodies = [graph for graph, holder in graphs_below(model.graph) if holder is not None]
    tensors = [tensor for body in bodies for tensor in body.initializer]
    found = [
        (tensor, weight) for tensor in tensors if (weight := large_raw_data(tensor, MIN_EXTERNAL)) is not None
    ]
    if total_bytes(weight for _, weight in found) > PROTOBUF_LIMIT // 2:
        yield from (_Moved(tensor, None, weight, id(tensor)) for tensor, weight in found)


def _write_data(
    model: onnx.ModelProto,
    target: Path,
    shown: str | os.PathLike[str],
    weights: StoredWeights | None,
    undo: ExitStack,
) -> tuple[dict[int, Reference], int]:
    """Write the data file of a model; the references to it, by index of the initializer, and its bytes."""
    moved = list(_moved(model, weights))
    if not moved:
        return {}, 0
    offsets: dict[object, int] = {}
    order: list[Weight] = []
    end = 0
    for item in moved:
        if item.key not in offsets:
            offsets[item.key] = end
            order.append(item.weight)
            end += len(item.weight) + -len(item.weight) % _PAGE
    digest = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        for weight in order:
            for piece in chain(weight.pieces(), (bytes(-len(weight) % _PAGE),)):
                digest.update(piece)
                file.write(piece)

    with StagedFile(target, shown) as staged:
        staged.write(write)
        location = f"{target.stem}.{digest.hexdigest()[:16]}.data"
        data = target.with_name(location)
        if not data.exists():
            undo.callback(_remove_unless_read, data, target)
        # What lies there under this name has the same bytes, or is damaged.
        staged.move(check_target(data, overwrite=True), overwrite=True)
    references = {}
    for item in moved:
        reference = Reference(location, offsets[item.key], len(item.weight))
        if item.index is None:
            refer(item.tensor, reference)
        else:
            references[item.index] = reference
    return references, end


def _remove_unless_read(path: Path, target: Path) -> None:
    """Remove a data file, unless another writer's model reads it: the target by now, or a staged one soon."""
    with file_access(path, "removed"):
        if any(_mentions(model, path.name) for model in (target, *StagedFile.beside(target))):
            return
        path.unlink(missing_ok=True)


def _mentions(path: Path, name: str) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name.encode()) >= 0
    except (FileNotFoundError, ValueError):  # it is gone by now, or empty
        return False
