"""onnx's shape inference, kept from what ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convbn.fuse.frontends.onnx.model.graphs import graphs_below, nodes_below

if TYPE_CHECKING:
    import onnx

__all__ = ["inferred"]


_SIZED_LATER = "SliceOfUnknownSize"
"""No operator of ONNX, so that inference passes over it."""


def inferred(model: onnx.ModelProto, *, data_prop: bool = False) -> onnx.ModelProto:
    """A copy with the shapes and types that follow.

    Args:
        model: one of the caller's own. Sizes below 0, as Paddle's exports state them, are opened in it: onnx ends the
            process where a Slice cuts one. Where such a size follows, as behind a kernel larger than its data, what
            Slices give stays unknown.
        data_prop: follow the numbers of shapes as well.
    """
    import onnx

    for dim in _negative(model):
        dim.ClearField("dim_value")
    slices = list(_nodes(model, "Slice"))
    if slices:
        for node in slices:
            node.op_type = _SIZED_LATER
        try:
            without = onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
        finally:
            for node in slices:
                node.op_type = "Slice"
        if next(_negative(without), None) is not None:
            for node in _nodes(without, _SIZED_LATER):
                node.op_type = "Slice"
            return without
    return onnx.shape_inference.infer_shapes(model, data_prop=data_prop)


def _negative(model: onnx.ModelProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    """Sizes below 0."""
    for graph, _ in graphs_below(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield from (dim for dim in value.type.tensor_type.shape.dim if dim.dim_value < 0)


def _nodes(model: onnx.ModelProto, operator: str) -> Iterator[onnx.NodeProto]:
    """Those of an operator, in bodies and local functions too."""
    own = (node for function in model.functions for node in function.node)
    return (node for node in nodes_below((*model.graph.node, *own)) if node.op_type == operator)
