"""Attributes of ONNX nodes as plain values, held against the types that ONNX's own operators give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.onnx.model.tensors import Stored

if TYPE_CHECKING:
    import onnx

__all__ = ["attributes_of", "is_standard"]

_PLAIN: dict[int, Callable[[onnx.AttributeProto], Any]] = {
    1: lambda a: a.f,
    2: lambda a: a.i,
    3: lambda a: a.s.decode(errors="replace"),
    4: lambda a: Stored(a.t).constant(),
    6: lambda a: list(a.floats),
    7: lambda a: list(a.ints),
    8: lambda a: [text.decode(errors="replace") for text in a.strings],
}
"""By the number of ``AttributeProto.AttributeType``."""


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether the node's operator is ONNX's own: a custom domain may reuse every name."""
    return node.domain in ("", "ai.onnx")


def attributes_of(node: onnx.NodeProto, opset: int) -> tuple[dict[str, Any], str | None]:
    """A node's attributes, tensors as constants, and the first that ONNX's schema has not, or of another type.

    Kinds that are not plain, such as bodies, are left out, and so is what a custom domain gives a reference.
    """
    types = _types(node.op_type, opset) if is_standard(node) else None
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        kind = attribute.type
        if types is not None and (attribute.ref_attr_name or kind not in types.get(attribute.name, ())):
            return {}, attribute.name
        if kind in _PLAIN and not attribute.ref_attr_name:
            found[attribute.name] = _PLAIN[kind](attribute)
    return found, None


@cache
def _types(operator: str, opset: int) -> Mapping[str, tuple[int, ...]]:
    """The types of an operator's attributes by name; of its newest version where it is not in that opset."""
    import onnx

    for version in (opset, onnx.defs.onnx_opset_version()):
        try:
            schema = onnx.defs.get_schema(operator, version)
        except onnx.defs.SchemaError:
            continue
        kinds = {name: attribute.type.value for name, attribute in schema.attributes.items()}  # type: ignore[attr-defined]
        return {name: (kind, *_ALSO.get(kind, ())) for name, kind in kinds.items()}
    return {}


_ALSO = {1: (2,), 6: (7,)}
"""Where ONNX wants floats, integers will do."""
