"""Upper bounds of integer inputs: the sizes of the Gather and Embedding tables that they index."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["index_limits"]

#: Operators behind which a value is the same numbers in another shape or type.
_PASSES = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice"}


def index_limits(model: onnx.ModelProto) -> dict[str, int]:
    """The smallest size of an axis that each input is an index along.

    Args:
        model: weights may lie in other files.

    Returns:
        By input name; an input that indexes nothing whose size is known is not in it.
    """
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            stored = next((a.t for a in node.attribute if a.name == "value"), None)
            if stored is not None:
                sizes[node.output[0]] = tuple(stored.dims)
    origin = {value.name: value.name for value in model.graph.input if value.name not in sizes}
    limits: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in _PASSES and node.input and node.input[0] in origin and node.output:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type not in ("Gather", "GatherElements") or len(node.input) < 2:
            continue
        table, index = sizes.get(node.input[0]), origin.get(node.input[1])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if table and index is not None and -len(table) <= axis < len(table):
            limits[index] = min(table[axis], limits.get(index, table[axis]))
    return limits
