"""Calls of ATen operators in exported graphs, read by the operators' own readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.schema import (
    arguments,
    operator_name,
    overload,
    passes_through,
    schema_of,
    shown_by,
    written_by,
)
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.calls import AtenCall, Mapped, Shape
from convbn.fuse.operators.registry import aten_rows

if TYPE_CHECKING:
    import torch.fx

__all__ = [
    "EXPORTED",
    "GraphTensors",
    "fixed_shape",
    "map_aten",
    "read",
    "shape_of",
    "type_name",
    "written_nodes",
]

_PLAIN_OVERLOADS = (
    *("default", "Tensor", "Scalar", "dim", "dims", "int", "ints", "sizes", "vec", "using_ints"),
    *("input", "padding", "no_stats", "deprecated"),
)
"""Those that compute what the operator's name says; others take another dtype, a mode or a tensor to write to."""


def map_aten(node: torch.fx.Node) -> Mapped | None:
    """The operator of the view that a node is, None where there is none for it."""
    namespace, _, name = operator_name(node).partition("::")
    key = name.removesuffix("_") if namespace == "aten" else f"{namespace}::{name}"
    rows = aten_rows(key)
    known = overload(node) in _PLAIN_OVERLOADS or any(overload(node) in row.overloads for row in rows)
    if not rows or not known or not _is_float(node):
        return None
    return read(AtenCall(key, arguments(node), EXPORTED))


def read(call: AtenCall) -> Mapped | None:
    """What the first reader that knows the call makes of it."""
    readers = (row.read for row in aten_rows(call.name) if row.read is not None)
    return next((found for reader in readers if (found := reader(call)) is not None), None)


class GraphTensors:
    """The tensors of an exported graph: its nodes."""

    def is_tensor(self, value: object) -> bool:
        """Whether an argument is a node."""
        import torch.fx

        return isinstance(value, torch.fx.Node)

    def shape(self, value: Any) -> Shape | None:
        """As the export noted it."""
        return shape_of(value)

    def call(self, value: torch.fx.Node) -> AtenCall | None:
        """The call that a node is."""
        name = operator_name(value).removeprefix("aten::")
        return AtenCall(name, arguments(value), self) if name else None

    def origin(self, value: torch.fx.Node) -> torch.fx.Node:
        """Through aliases and dropouts outside training."""
        while (source := passes_through(value)) is not None:
            value = source
        return value

    def is_stored(self, value: torch.fx.Node) -> bool:
        """Whether a node is one of the graph's inputs."""
        return value.op in ("placeholder", "get_attr")

    def dtype(self, value: Any) -> str | None:
        """As the export noted it."""
        return type_name(getattr(value.meta.get("val"), "dtype", None))


EXPORTED = GraphTensors()


def type_name(dtype: object) -> str | None:
    """The name of a type of tensors, such as ``float32``."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def shape_of(node: object) -> Shape | None:
    """The shape that a node of an exported graph has in every run; dimensions that may change are None."""
    return fixed_shape(getattr(node, "meta", {}).get("val"))


def fixed_shape(value: object) -> Shape | None:
    """The shape of a tensor, with None for the dimensions that may change; None for what is no tensor."""
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)


def _is_float(node: torch.fx.Node) -> bool:
    """Whether the result, or the first of several, holds real numbers."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return bool(getattr(getattr(first, "dtype", None), "is_floating_point", False))


def written_nodes(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """The nodes whose tensor some operator of the graph writes to, through a view or directly."""
    for node in graph.nodes:
        if schema_of(node) is None:
            continue
        touched = list(written_by(node))
        # The schema of batch_norm does not say that training updates its statistics.
        mapped = map_aten(node) if "batch_norm" in operator_name(node) else None
        if mapped is not None and isinstance(mapped.op, BatchNorm) and mapped.op.training:
            touched.extend(slot for slot in mapped.slots[3:] if isinstance(slot, type(node)))
        for value in touched:
            base = value
            while (shown := shown_by(base)) is not None:
                base = shown
            yield base
