"""Initializers that are graph inputs too: a caller may feed another value, unless the user says that nobody does."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["declare_new", "freeze", "overridable"]

_FIRST_IR = 4
"""Until then every initializer had to be an input, and exporters wrote them without a thought of feeding them."""


def overridable(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the initializers that a caller of the model may feed."""
    if model.ir_version < _FIRST_IR:
        return frozenset()
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    return frozenset(value.name for value in graph.input) & stored


def freeze(model: onnx.ModelProto) -> list[str]:
    """Take the overridable initializers out of the inputs of ``model``, in place; a note for the report."""
    names = overridable(model)
    inputs = model.graph.input
    for index in range(len(inputs) - 1, -1, -1):
        if inputs[index].name in names:
            del inputs[index]
    if not names:
        return []
    listed = ", ".join(sorted(names)[:4]) + (", …" if len(names) > 4 else "")
    return [f"initializers that were inputs too are constants now: {len(names)} ({listed})"]


def declare_new(model: onnx.ModelProto, before: Collection[str]) -> None:
    """Make inputs of the initializers that are not among ``before``, where the format wants every one to be one."""
    import onnx

    if model.ir_version >= _FIRST_IR:
        return
    known = {value.name for value in model.graph.input}
    if not known.issuperset(before):
        return  # the file did not keep to it as it came, and runtimes load such files
    for tensor in model.graph.initializer:
        if tensor.name not in known:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(value)
