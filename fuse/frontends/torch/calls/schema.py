"""ATen calls in an FX graph: their names and arguments, what they write to and whose memory they show."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.fx

__all__ = [
    "arguments",
    "is_marker",
    "label",
    "only_metadata",
    "operator_name",
    "overload",
    "passes_through",
    "schema_of",
    "shown_by",
    "view_unsaid",
    "written_by",
]

_METADATA = (
    "aten::sym_size",
    "aten::sym_numel",
    "aten::sym_stride",
    "aten::sym_storage_offset",
    "aten::_assert_tensor_metadata",
    "prim::device",
    "prim::dtype",
)
_SAME_TENSOR = ("aten::alias", "aten::detach")
_DROPOUTS = ("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout")


def schema_of(node: torch.fx.Node) -> Any:
    """The schema of an ATen operator, None for any other target."""
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None


def operator_name(node: torch.fx.Node) -> str:
    """The operator with its namespace, such as ``aten::add``; empty for any other target."""
    schema = schema_of(node)
    return "" if schema is None else str(schema.name)


def overload(node: torch.fx.Node) -> str:
    """The overload's name, such as ``Tensor``."""
    return str(getattr(node.target, "_overloadname", "default"))


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by name and in order, defaults included; empty for any other node."""
    schema = schema_of(node)
    if schema is None:
        return {}
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given.update(zip(given, node.args, strict=False))
    given.update(node.kwargs)
    return given


def label(node: torch.fx.Node) -> str:
    """The operator's name as reports show it."""
    name = operator_name(node)
    if name:
        return name.replace("::", ".")
    if isinstance(node.target, str):
        return node.target
    return str(getattr(node.target, "__name__", node.target))


def is_marker(node: torch.fx.Node) -> bool:
    """Whether a node is another name for a tensor and nothing else."""
    return operator_name(node) == "aten::alias"


def only_metadata(node: torch.fx.Node) -> bool:
    """Whether a node looks at the shape, dtype or device of a tensor and not at its numbers."""
    return operator_name(node) in _METADATA


def passes_through(node: torch.fx.Node) -> torch.fx.Node | None:
    """The input that a node hands on as it is, memory and all; None if it does anything."""
    name = operator_name(node)
    if name in _SAME_TENSOR:
        source = arguments(node)["self"]
    elif name.removesuffix("_") in _DROPOUTS:
        return view_unsaid(node)
    else:
        return None
    return source if isinstance(source, type(node)) else None


def view_unsaid(node: torch.fx.Node) -> torch.fx.Node | None:
    """The tensor that a node gives, or a view of it, though its schema says that the result is a new one."""
    name = operator_name(node)
    is_dropout = name.removesuffix("_") in _DROPOUTS
    if not is_dropout and name != "aten::einsum":
        return None
    given = arguments(node)
    if is_dropout:
        source = next(iter(given.values())) if given["train"] is False or given["p"] == 0 else None
    else:
        source = given["tensors"][0] if len(given["tensors"]) == 1 else None
    return source if isinstance(source, type(node)) else None


def written_by(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """The tensors whose numbers an ATen call changes, by its schema."""
    schema = schema_of(node)
    if schema is None or not schema.is_mutable or passes_through(node) is not None:
        return
    given = arguments(node)
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = given[argument.name]
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, type(node)):
                    yield item


def shown_by(node: torch.fx.Node) -> torch.fx.Node | None:
    """The tensor in whose memory the result of a call may lie; None where it lies in its own."""
    if node.op != "call_function":
        return None
    schema = schema_of(node)
    if schema is None:  # one of a list of views
        source = node.args[0] if node.target is operator.getitem else None
    else:
        handed_on = passes_through(node) or view_unsaid(node)
        if handed_on is not None:
            return handed_on
        given = arguments(node)
        # Some give a view or a copy, by the strides at hand: their schemas say that they may.
        aliased = [argument.name for argument in schema.arguments if argument.alias_info is not None]
        source = given[aliased[0]] if aliased and schema.returns else None
    return source if isinstance(source, type(node)) else None
