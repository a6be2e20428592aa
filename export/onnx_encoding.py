"""An ONNX model as a row of byte strings, so that its weights are not copied to be written.

protobuf's own serialiser moves every byte several times and stops at 2 GiB. Here all but the large
initializers is serialised piece by piece, and their bytes are taken from the model when they are
written. Put together the pieces are, byte for byte, what ``SerializeToString`` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["PAGE", "Weight", "encode_model", "pieces_of", "total_bytes"]

# onnxruntime maps an external initializer straight from its file where it starts on a page.
PAGE = 4096
# Below this, handling a tensor's bytes apart costs more than it saves.
_MIN_BYTES = 1024
_BYTES = 2  # wire type of what carries its length
_RAW_DATA = 9


@dataclass(frozen=True)
class Weight:
    """Stands for the raw bytes of a large initializer.

    Attributes:
        tensor: that holds them.
        length: how many they are.
    """

    tensor: onnx.TensorProto
    length: int

    def __len__(self) -> int:
        return self.length


def encode_model(model: onnx.ModelProto, *, location: str | None = None) -> list[bytes | Weight]:
    """Encode a model.

    Args:
        model: unchanged.
        location: if given, large initializers become references to this file, in which each starts on
            a page, one after the other.

    Returns:
        The pieces of the message; with `location`, of the message without its large weights.
    """
    graph = list(_graph(model.graph, location))
    parts: list[bytes | Weight] = []
    for field, value in model.ListFields():
        if field.name == "graph":
            parts.append(_header(field.number, total_bytes(graph)))
            parts.extend(graph)
        else:
            parts.extend(_field(model, field, value))
    return [*parts, *_unknown(model)]


def total_bytes(parts: Iterable[bytes | Weight]) -> int:
    """Length of the whole message."""
    return sum(map(len, parts))


def pieces_of(parts: Iterable[bytes | Weight]) -> Iterator[bytes]:
    """The bytes, each weight's fetched only when its turn comes."""
    for part in parts:
        yield part.tensor.raw_data if isinstance(part, Weight) else part


def _graph(graph: onnx.GraphProto, location: str | None) -> Iterator[bytes | Weight]:
    offset = 0
    for field, value in graph.ListFields():
        if field.name != "initializer":
            yield from _field(graph, field, value)
            continue
        for tensor in value:
            length = len(tensor.raw_data) if tensor.HasField("raw_data") else 0
            if length < _MIN_BYTES or _unknown(tensor):
                yield from _framed(field.number, [tensor.SerializeToString()])
            elif location is None:
                low, high = _around_raw_data(tensor)
                raw = _header(_RAW_DATA, length)
                yield from _framed(field.number, [low, raw, Weight(tensor, length), high])
            else:
                yield from _framed(field.number, [_reference(tensor, location, offset, length)])
                offset += length + -length % PAGE
    yield from _unknown(graph)


def _around_raw_data(tensor: onnx.TensorProto) -> tuple[bytes, bytes]:
    """A tensor's fields before and after ``raw_data``, in the order of their numbers."""
    low, high = type(tensor)(), type(tensor)()
    for field, value in tensor.ListFields():
        if field.number != _RAW_DATA:
            _copy(low if field.number < _RAW_DATA else high, field.name, value)
    return low.SerializeToString(), high.SerializeToString()


def _reference(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> bytes:
    result = type(tensor)()
    for field, value in tensor.ListFields():
        if field.number != _RAW_DATA:
            _copy(result, field.name, value)
    result.data_location = type(tensor).EXTERNAL
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        result.external_data.add(key=key, value=text)
    data: bytes = result.SerializeToString()
    return data


def _field(message: Any, field: Any, value: Any) -> Iterator[bytes | Weight]:
    if field.message_type is None:
        alone = type(message)()
        _copy(alone, field.name, value)
        yield alone.SerializeToString()
        return
    for element in value if hasattr(value, "MergeFrom") and hasattr(value, "append") else (value,):
        yield from _framed(field.number, [element.SerializeToString()])


def _framed(number: int, parts: list[bytes | Weight]) -> Iterator[bytes | Weight]:
    yield _header(number, total_bytes(parts))
    yield from parts


def _header(number: int, length: int) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _copy(message: Any, name: str, value: Any) -> None:
    current = getattr(message, name)
    if hasattr(current, "MergeFrom"):  # a message or a repeated field
        current.MergeFrom(value)
    else:
        setattr(message, name, value)


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
