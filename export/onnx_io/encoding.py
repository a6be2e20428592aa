"""Serialises a ModelProto in pieces, without copying its weights.

protobuf's own serialiser moves every byte several times and stops at 2 GiB. Here all but the large
initializers is serialised piece by piece, and their bytes are taken from the model when they are
written. Put together the pieces are, byte for byte, what ``SerializeToString`` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from convbn.export.onnx_io.wire import MIN_BYTES, header

if TYPE_CHECKING:
    import onnx

__all__ = [
    "PROTOBUF_LIMIT",
    "Buffer",
    "Reference",
    "Weight",
    "encode_model",
    "large_raw_data",
    "pieces_of",
    "refer",
    "total_bytes",
]

Buffer: TypeAlias = bytes | memoryview

# protobuf's sizes are signed 32-bit numbers: neither its parser nor its writer goes beyond.
PROTOBUF_LIMIT = (1 << 31) - 1

_RAW_DATA = 9
_ELSEWHERE = {_RAW_DATA, 13, 14}  # external_data and data_location


@dataclass(frozen=True, slots=True)
class Weight:
    """Stands for the raw bytes of a large tensor.

    Attributes:
        length: how many they are.
        pieces: gives them, in order; each piece may be overwritten by the next.
    """

    length: int
    pieces: Callable[[], Iterable[Buffer]]

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the raw bytes of a tensor lie in a file beside the model: its relative path, offset and length."""

    location: str
    offset: int
    length: int


def encode_model(
    model: onnx.ModelProto,
    *,
    weights: Mapping[int, Weight] | None = None,
    references: Mapping[int, Reference] | None = None,
) -> list[bytes | Weight]:
    """Encode a model.

    Args:
        model: unchanged.
        weights: raw data of initializers that do not hold their own, by index in the graph.
        references: what stands in the place of an initializer's raw data, by index.

    Returns:
        The pieces of the message.
    """
    graph = list(_graph(model.graph, weights or {}, references or {}))
    parts: list[bytes | Weight] = []
    for field, value in model.ListFields():
        if field.name == "graph":
            parts.append(header(field.number, total_bytes(graph)))
            parts.extend(graph)
        else:
            parts.extend(_field(model, field, value))
    return [*parts, *_unknown(model)]


def total_bytes(parts: Iterable[bytes | Weight]) -> int:
    """Length of the whole message."""
    return sum(map(len, parts))


def pieces_of(parts: Iterable[bytes | Weight]) -> Iterator[Buffer]:
    """The bytes, each weight's fetched only when its turn comes."""
    for part in parts:
        if isinstance(part, Weight):
            yield from part.pieces()
        else:
            yield part


def refer(tensor: onnx.TensorProto, reference: Reference) -> None:
    """Let a tensor refer to bytes in another file, in place of what it held or referred to."""
    for name in ("raw_data", "external_data"):
        tensor.ClearField(name)
    tensor.data_location = type(tensor).EXTERNAL
    place = (("location", reference.location), ("offset", reference.offset), ("length", reference.length))
    for key, value in place:
        tensor.external_data.add(key=key, value=str(value))


def _graph(
    graph: onnx.GraphProto, weights: Mapping[int, Weight], references: Mapping[int, Reference]
) -> Iterator[bytes | Weight]:
    for field, value in graph.ListFields():
        if field.name != "initializer":
            yield from _field(graph, field, value)
            continue
        for index, tensor in enumerate(value):
            reference, weight = references.get(index), weights.get(index)
            if reference is not None:
                light = _without_data(tensor)
                refer(light, reference)
                yield from _framed(field.number, [light.SerializeToString()])
                continue
            weight = weight or large_raw_data(tensor)
            if weight is None:
                yield from _framed(field.number, [tensor.SerializeToString()])
            else:
                low, high = _around_raw_data(tensor)
                yield from _framed(field.number, [low, header(_RAW_DATA, len(weight)), weight, high])
    yield from _unknown(graph)


def large_raw_data(tensor: onnx.TensorProto, least: int = MIN_BYTES) -> Weight | None:
    """The raw data that a tensor holds, if they are to be handled apart: if they are ``least`` bytes or more."""
    if not tensor.HasField("raw_data") or _unknown(tensor):
        return None
    length = len(tensor.raw_data)
    return Weight(length, lambda: (tensor.raw_data,)) if length >= least else None


def _around_raw_data(tensor: onnx.TensorProto) -> tuple[bytes, bytes]:
    """A tensor's fields before and after ``raw_data``, in the order of their numbers."""
    low, high = type(tensor)(), type(tensor)()
    for field, value in tensor.ListFields():
        if field.number not in _ELSEWHERE:
            _copy(low if field.number < _RAW_DATA else high, field, value)
    return low.SerializeToString(), high.SerializeToString()


def _without_data(tensor: onnx.TensorProto) -> onnx.TensorProto:
    result = type(tensor)()
    if not tensor.HasField("raw_data"):
        result.CopyFrom(tensor)
        return result
    for field, value in tensor.ListFields():
        if field.number not in _ELSEWHERE:
            _copy(result, field, value)
    return result


def _field(message: Any, field: Any, value: Any) -> Iterator[bytes | Weight]:
    if field.message_type is None:
        alone = type(message)()
        _copy(alone, field, value)
        yield alone.SerializeToString()
        return
    for element in value if hasattr(value, "MergeFrom") and hasattr(value, "append") else (value,):
        yield from _framed(field.number, [element.SerializeToString()])


def _framed(number: int, parts: list[bytes | Weight]) -> Iterator[bytes | Weight]:
    yield header(number, total_bytes(parts))
    yield from parts


def _copy(message: Any, field: Any, value: Any) -> None:
    current = getattr(message, field.name)
    if hasattr(current, "MergeFrom"):  # a message or a repeated field
        current.MergeFrom(value)
    elif isinstance(value, bytes):  # or a text that is not UTF-8, as a note may be, which cannot be set
        message.MergeFromString(header(field.number, len(value)) + value)
    else:
        setattr(message, field.name, value)


def _unknown(message: Any) -> list[bytes]:
    """Fields of a later ONNX than the installed one, which must survive."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    if len(UnknownFieldSet(message)) == 0:
        return []
    # What is left of the message without its known fields. A copy is fine in this rare case.
    rest = type(message)()
    rest.CopyFrom(message)
    for field, _ in message.ListFields():
        rest.ClearField(field.name)
    return [rest.SerializeToString()]
