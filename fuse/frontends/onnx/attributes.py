"""Attributes that ONNX does not give an operator, or of another type: nothing reads a node that holds one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["odd_attribute"]

_PLAIN = (int, float, str, bytes, list, tuple)
_KINDS: dict[str, Any] = {"INT": int, "FLOAT": float | int, "STRING": str}


def odd_attribute(operator: str, opset: int, attributes: Mapping[str, Any]) -> str | None:
    """The name of the first attribute that is not as ONNX's schema has it; None where all are.

    Args:
        operator: one of ONNX's own.
        opset: the version of these.
        attributes: plain values, and objects for tensors and graphs.
    """
    types = _types(operator, opset)
    return next((name for name, value in attributes.items() if not _fits(value, types.get(name))), None)


def _fits(value: object, kind: str | None) -> bool:
    if kind in _KINDS:
        return isinstance(value, _KINDS[kind])
    if kind in ("INTS", "FLOATS", "STRINGS"):
        kinds = _KINDS[kind.removesuffix("S")]
        return isinstance(value, list | tuple) and all(isinstance(item, kinds) for item in value)
    return kind is not None and not isinstance(value, _PLAIN)


@cache
def _types(operator: str, opset: int) -> Mapping[str, str]:
    """The types of an operator's attributes by name; of its newest version where it is not in that opset."""
    import onnx

    for version in (opset, onnx.defs.onnx_opset_version()):
        try:
            schema = onnx.defs.get_schema(operator, version)
        except onnx.defs.SchemaError:
            continue
        return {name: str(attribute.type).rpartition(".")[2] for name, attribute in schema.attributes.items()}
    return {}
