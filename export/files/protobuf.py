"""A look at the outermost fields of a protobuf message: enough to know an ONNX model from noise."""

from __future__ import annotations

from typing import BinaryIO

from convbn.errors import BadInputError

__all__ = ["is_onnx_model"]

_VARINT, _BYTES = 0, 2
_GRAPH = 7
# Field number -> wire type of ModelProto in onnx.proto3. A new field of a future ONNX is a length-
# delimited one; the numbers in use end at 26.
_MODEL_FIELDS = {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES}
_LAST_FIELD = 64


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
    position, seen = 0, set[int]()
    while position < size:
        file.seek(position)
        header = file.read(20)
        tag, used = _varint(header)
        number, wire = tag >> 3, tag & 7
        if used == 0 or not 0 < number <= _LAST_FIELD or wire != _MODEL_FIELDS.get(number, _BYTES):
            return False
        value, more = _varint(header[used:])
        if more == 0:
            break
        position += used + more + (value if wire == _BYTES else 0)
        seen.add(number)
    complete = position == size
    if not complete and seen:
        # Noise can pass for one or two fields; a field that begins a model and a plausible graph cannot.
        if 1 in seen and (_GRAPH in seen or len(seen) > 1):
            raise BadInputError(
                f"is an ONNX model cut short: {position} bytes are announced, the file has {size}"
            )
        return False
    return complete and _GRAPH in seen


def _varint(data: bytes) -> tuple[int, int]:
    """Value of a base-128 varint and the bytes it takes, 0 bytes where there is none."""
    value = 0
    for index, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, index + 1
    return 0, 0
