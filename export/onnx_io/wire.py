"""An ONNX file without the bulk of its weights, which stay where they are in the file.

Parsing a model copies every weight, and so does each look at one. Here the file's fields are walked by
hand, down to the raw data of the large initializers: those bytes are left out of what protobuf parses, and
the initializer refers to them as it would to a file of external data, the model file itself.
"""

from __future__ import annotations

from io import BufferedReader

from convbn.export.onnx_io.encoding import MIN_BYTES, varint

__all__ = ["detach"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
# Tags: number of the field and wire type.
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7 << 3 | _BYTES, 5 << 3 | _BYTES
_TENSOR_TYPE, _RAW_DATA, _EXTERNAL_DATA = 2 << 3 | _VARINT, 9 << 3 | _BYTES, 13 << 3 | _BYTES
_DATA_LOCATION = 14 << 3 | _VARINT
# A field of a later ONNX must survive; only protobuf itself carries it along.
_TENSOR_FIELDS = frozenset({*range(1, 15), 16})
_STRING = 8
_WINDOW = 4096


def detach(file: BufferedReader, size: int, location: str) -> bytes | None:
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
        return _Walk(file, size, location).model()
    except _UnusualError:
        return None


class _UnusualError(Exception):
    """A field that this walk does not follow: damaged, or of a later protobuf."""


class _Walk:
    def __init__(self, file: BufferedReader, size: int, location: str) -> None:
        self._file = file
        self._size = size
        self._location = _entry("location", location)
        self._start = 0
        self._window = b""

    def model(self) -> bytes:
        position, parts = 0, []
        while position < self._size:
            tag, body, end = self._field(position, self._size)
            if tag == _MODEL_GRAPH:
                graph = self._graph(body, end)
                parts += [_header(_MODEL_GRAPH, sum(map(len, graph))), *graph]
            else:
                parts.append(self._bytes(position, end))
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
                    parts += [self._bytes(kept, position), _header(_GRAPH_INITIALIZER, len(tensor)), tensor]
                    kept = end
            position = end
        parts.append(self._bytes(kept, limit))
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
                parts.append(self._bytes(position, end))
                if tag == _TENSOR_TYPE and parts[-1][-1] == _STRING:
                    return None
            position = end
        if raw is None or raw[1] - raw[0] < MIN_BYTES:
            return None
        place = _entry("offset", str(raw[0])) + _entry("length", str(raw[1] - raw[0]))
        return b"".join([*parts, self._location, place, bytes([_DATA_LOCATION, 1])])

    def _field(self, position: int, limit: int) -> tuple[int, int, int]:
        """Tag of the field that begins here, where its body begins and where it ends."""
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
        if end > limit or tag < 8:
            raise _UnusualError
        return tag, body, end

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

    def _bytes(self, start: int, end: int) -> bytes:
        at = start - self._start
        if at >= 0 and end - self._start <= len(self._window):
            return self._window[at : end - self._start]
        return self._read(end - start, start)

    def _read(self, length: int, position: int) -> bytes:
        self._file.seek(position)
        return self._file.read(length)


def _header(tag: int, length: int) -> bytes:
    return varint(tag) + varint(length)


def _entry(key: str, value: str) -> bytes:
    """One entry of a tensor's external data."""
    name, text = key.encode(), value.encode()
    body = _header(1 << 3 | _BYTES, len(name)) + name + _header(2 << 3 | _BYTES, len(text)) + text
    return _header(_EXTERNAL_DATA, len(body)) + body
