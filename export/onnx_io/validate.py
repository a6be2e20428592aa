"""Walks every message of a model, subgraphs and functions included; checks that names are UTF-8 and bytes fit shapes.

Shapes come from the file and may lie; sizes are checked before anything is allocated from them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from convbn.common.text import shape_text
from convbn.errors import BadInputError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "check_embedded",
    "check_length",
    "declared_bytes",
    "iterate_messages",
    "iterate_tensors",
]

_STRING = 8
_TEXT, _MESSAGE = 9, 11  # FieldDescriptor.TYPE_STRING and TYPE_MESSAGE
# TensorProto.DataType -> bits of one element.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
    16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
# TensorProto.DataType -> the field that holds its values where raw_data does not.
_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}
_COMPLEX = {14: "float_data", 15: "double_data"}
# The largest size that a signed 64-bit number of bytes can hold.
_LIMIT = 1 << 63


def iterate_messages(model: onnx.ModelProto) -> Iterator[Any]:
    """A model and every message in it that may hold others, level by level; a tensor is given as a whole.

    The walk is a loop with a queue of its own, so that nested subgraphs cannot exhaust Python's stack. Dimensions,
    notes and versions, which are most of a model's messages, are looked at on the way.

    Raises:
        BadInputError: a name is not UTF-8. protobuf hands such a text out as ``bytes``, on which whatever
            compares, prints or counts names fails later, in convbn and in the runtimes' Python interfaces alike.
    """
    from onnx import TensorProto

    kinds: dict[Any, tuple[int, bool, Sequence[str] | None]] = {}
    waiting: deque[Any] = deque([model])
    while waiting:
        message = waiting.popleft()
        yield message
        if type(message) is TensorProto:  # whose weights would be copied to be looked at
            _require_text((message.name,))
            for entry in message.external_data:
                _require_text((entry.key, entry.value))
            continue
        for field, value in message.ListFields():
            known = kinds.get(field)
            if known is None:
                known = kinds[field] = _kind(field, value)
            kind, repeated, texts = known
            if kind == _TEXT:
                _require_text(value if repeated else (value,))
            elif texts is not None:
                for last in value if repeated else (value,):
                    _require_text([getattr(last, name) for name in texts])
            elif kind == _MESSAGE:
                waiting.extend(value if repeated else (value,))


def _kind(field: Any, value: Any) -> tuple[int, bool, Sequence[str] | None]:
    """The type of a field, whether it is repeated, and the texts of its messages if they hold no others."""
    repeated, texts = hasattr(value, "append"), None
    if field.type == _MESSAGE:
        below, sample = field.message_type.fields, value[0] if repeated else value
        if not any(one.type == _MESSAGE or hasattr(getattr(sample, one.name), "append") for one in below):
            texts = [one.name for one in below if one.type == _TEXT and one.name != "doc_string"]
    return (0 if field.name == "doc_string" else field.type), repeated, texts


def iterate_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All stored tensors: initializers, sparse ones, attributes, subgraphs, local functions.

    Raises:
        BadInputError: see :func:`iterate_messages`.
    """
    from onnx import TensorProto

    return (message for message in iterate_messages(model) if type(message) is TensorProto)


def _require_text(texts: Iterable[object]) -> None:
    for text in texts:
        if type(text) is not str:
            raise BadInputError(f"holds a name that is not UTF-8: {text!r}")


def declared_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the shape and type of a tensor call for.

    Args:
        tensor: any tensor but one of strings.

    Raises:
        BadInputError: a dimension is negative, the type is unknown, or the product is absurd.
    """
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise BadInputError(f"tensor {tensor.name!r} has the unknown or unfit data type {tensor.data_type}")
    return (_count(tensor) * bits + 7) // 8


def check_embedded(tensor: onnx.TensorProto) -> None:
    """Hold a tensor's own values against its shape and type.

    Raises:
        BadInputError: they do not fit, see also :func:`declared_bytes`.
    """
    if tensor.data_type == _STRING:
        expected, found = _count(tensor), len(tensor.string_data)
    elif tensor.HasField("raw_data"):
        expected, found = declared_bytes(tensor), len(tensor.raw_data)
    elif tensor.data_type in _COMPLEX:
        expected, found = 2 * _count(tensor), len(getattr(tensor, _COMPLEX[tensor.data_type]))
    else:
        # Elements below a byte share one entry with their neighbours.
        expected = _count(tensor) if _BITS.get(tensor.data_type, 8) >= 8 else declared_bytes(tensor)
        found = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
        if expected == found:
            declared_bytes(tensor)
    if expected != found:
        raise _does_not_fit(tensor, found, "bytes" if tensor.HasField("raw_data") else "values", expected)


def check_length(tensor: onnx.TensorProto, found: int) -> None:
    """Hold the number of a tensor's raw bytes against its shape and type.

    Raises:
        BadInputError: they do not fit, see also :func:`declared_bytes`.
    """
    expected = declared_bytes(tensor)
    if expected != found:
        raise _does_not_fit(tensor, found, "bytes", expected)


def _does_not_fit(tensor: onnx.TensorProto, found: int, unit: str, expected: int) -> BadInputError:
    shape = shape_text(tensor.dims)
    return BadInputError(
        f"tensor {tensor.name!r} ({shape}) holds {found} {unit} where its shape needs {expected}"
    )


def _count(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise BadInputError(f"tensor {tensor.name!r} has the negative dimension {dim}")
        count *= dim
    if count >= _LIMIT >> 4:
        raise BadInputError(f"tensor {tensor.name!r} has an absurd shape, {count} elements")
    return count
