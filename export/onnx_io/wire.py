"""ONNX files as protobuf lays them out, walked field by field without parsing them.

That is enough to know a model from noise (:func:`is_onnx_model`), and to leave the bulk of its weights where they
are (:func:`detach`): parsing copies every weight, and so does each look at one. The raw data of the large
initializers is left out of what protobuf parses, and the initializer refers to it as it would to a file of external
data, the model file itself.

Source: the encoding of protobuf messages, protobuf.dev/programming-guides/encoding; field numbers of onnx.proto3.
"""

from __future__ import annotations

from typing import BinaryIO

from convbn.errors import BadInputError

__all__ = ["MIN_BYTES", "MIN_EXTERNAL", "detach", "header", "is_onnx_model"]

MIN_BYTES = 1 << 16
"""Below this, handling a tensor's bytes apart costs more than it saves."""
MIN_EXTERNAL = 1024
"""What goes into a file of external data: an initializer of so many bytes or more."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_GRAPH = 7
# Field number -> wire type of ModelProto. A new field of a future ONNX is a length-delimited one; the numbers in
# use end at 26.
_MODEL_FIELDS = {1: _VARINT, 5: _VARINT}
_LAST_FIELD = 64
# Tags: number of the field and wire type.
_MODEL_GRAPH, _GRAPH_INITIALIZER = _GRAPH << 3 | _BYTES, 5 << 3 | _BYTES
_TENSOR_TYPE, _RAW_DATA, _EXTERNAL_DATA = 2 << 3 | _VARINT, 9 << 3 | _BYTES, 13 << 3 | _BYTES
_DATA_LOCATION = 14 << 3 | _VARINT
# A field of a later ONNX must survive; only protobuf itself carries it along.
_TENSOR_FIELDS = frozenset({*range(1, 15), 16})
_STRING = 8
_WINDOW = 4096


def header(number: int, length: int) -> bytes:
    """What stands before the bytes of a field that carries its length: its tag and that length, in base 128."""
    result = bytearray()
    for value in (number << 3 | _BYTES, length):
        while value > 0x7F:
            result.append(value & 0x7F | 0x80)
            value >>= 7
        result.append(value)
    return bytes(result)


def is_onnx_model(file: BinaryIO, size: int) -> bool:
    """Whether a file has the outer fields of an ONNX ``ModelProto``, of which the graph must be one.

    Args:
        file: positioned anywhere; only field headers are read, bodies are skipped.
        size: its length in bytes.

    Returns:
        False where a field is not one of ModelProto's or no graph is found.

    Raises:
        BadInputError: the fields are ModelProto's, but the file ends inside one.
    """
    fields, position, seen = _Fields(file), 0, set[int]()
    while position < size:
        try:
            tag, _, position = fields.at(position)
        except _UnusualError:
            break
        number, wire = tag >> 3, tag & 7
        if number > _LAST_FIELD or wire != _MODEL_FIELDS.get(number, _BYTES):
            return False
        seen.add(number)
    if position == size:
        return _GRAPH in seen
    # Noise can pass for one or two fields; a field that begins a model and a plausible graph cannot.
    if 1 in seen and (_GRAPH in seen or len(seen) > 1):
        raise BadInputError(
            f"is an ONNX model cut short: {position} bytes are announced, the file has {size}"
        )
    return False


def detach(file: BinaryIO, size: int, location: str) -> bytes | None:
    """A model file without the raw data of its large initializers.

    Args:
        file: the model, positioned anywhere.
        size: its length.
        location: by which the references name the file. Nothing that stands in a file may pass for it.

    Returns:
        The message to parse: initializers whose bytes were left out say in their external data at which offset
        of the file those lie. None where the file is not laid out as usual, and protobuf should read all of it.
    """
    try:
        return _Detached(file, size, location).model()
    except _UnusualError:
        return None


class _UnusualError(Exception):
    """A field that this walk does not follow: damaged, or of a later protobuf."""


class _Fields:
    """Fields of a message in a file, found by where they begin."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = 0
        self._window = b""

    def at(self, position: int) -> tuple[int, int, int]:
        """Tag of the field that begins here, where its body begins and where it ends.

        Raises:
            _UnusualError: there is none, or one of a wire type that ONNX does not use.
        """
        tag, body = self._varint(position)
        wire = tag & 7
        if wire == _BYTES:
            length, body = self._varint(body)
            end = body + length
        elif wire == _VARINT:
            _, end = self._varint(body)
        elif wire in (_FIXED32, _FIXED64):
            end = body + (4 if wire == _FIXED32 else 8)
        else:
            raise _UnusualError
        if tag < 8:
            raise _UnusualError
        return tag, body, end

    def read(self, start: int, end: int) -> bytes:
        """The bytes of a range."""
        at = start - self._start
        if at >= 0 and end - self._start <= len(self._window):
            return self._window[at : end - self._start]
        return self._read(end - start, start)

    def _varint(self, position: int) -> tuple[int, int]:
        at = position - self._start
        if not 0 <= at <= len(self._window) - 10:
            self._window = self._read(_WINDOW, position)
            self._start, at = position, 0
        value, shift = 0, 0
        for byte in self._window[at : at + 10]:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, position + shift // 7
        raise _UnusualError

    def _read(self, length: int, position: int) -> bytes:
        self._file.seek(position)
        return self._file.read(length)


class _Detached:
    def __init__(self, file: BinaryIO, size: int, location: str) -> None:
        self._fields = _Fields(file)
        self._size = size
        self._location = _entry("location", location)

    def model(self) -> bytes:
        position, parts = 0, []
        while position < self._size:
            tag, body, end = self._field(position, self._size)
            if tag == _MODEL_GRAPH:
                graph = self._graph(body, end)
                parts += [header(_GRAPH, sum(map(len, graph))), *graph]
            else:
                parts.append(self._fields.read(position, end))
            position = end
        return b"".join(parts)

    def _graph(self, position: int, limit: int) -> list[bytes]:
        parts: list[bytes] = []
        kept = position
        while position < limit:
            tag, body, end = self._field(position, limit)
            if tag == _GRAPH_INITIALIZER and end - body >= MIN_BYTES:
                tensor = self._tensor(body, end)
                if tensor is not None:
                    parts += [
                        self._fields.read(kept, position),
                        header(_GRAPH_INITIALIZER >> 3, len(tensor)),
                        tensor,
                    ]
                    kept = end
            position = end
        parts.append(self._fields.read(kept, limit))
        return parts

    def _tensor(self, position: int, limit: int) -> bytes | None:
        """The initializer with a reference for its raw data; None where it keeps them."""
        raw: tuple[int, int] | None = None
        parts = []
        while position < limit:
            tag, body, end = self._field(position, limit)
            if tag == _RAW_DATA:
                if raw is not None:
                    return None
                raw = body, end
            elif tag in (_EXTERNAL_DATA, _DATA_LOCATION) or tag >> 3 not in _TENSOR_FIELDS:
                return None
            else:
                parts.append(self._fields.read(position, end))
                if tag == _TENSOR_TYPE and parts[-1][-1] == _STRING:
                    return None
            position = end
        if raw is None or raw[1] - raw[0] < MIN_BYTES:
            return None
        place = _entry("offset", str(raw[0])) + _entry("length", str(raw[1] - raw[0]))
        return b"".join([*parts, self._location, place, bytes([_DATA_LOCATION, 1])])

    def _field(self, position: int, limit: int) -> tuple[int, int, int]:
        found = self._fields.at(position)
        if found[2] > limit:
            raise _UnusualError
        return found


def _entry(key: str, value: str) -> bytes:
    """One entry of a tensor's external data."""
    name, text = key.encode(), value.encode()
    body = header(1, len(name)) + name + header(2, len(text)) + text
    return header(_EXTERNAL_DATA >> 3, len(body)) + body
