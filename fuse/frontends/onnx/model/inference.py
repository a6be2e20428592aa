"""onnx's shape inference, kept from what ends the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convbn.fuse.frontends.onnx.model.graphs import graphs_below

if TYPE_CHECKING:
    import onnx

__all__ = ["inferred"]


def inferred(model: onnx.ModelProto, *, data_prop: bool = False) -> onnx.ModelProto:
    """A copy with the shapes and types that follow.

    Args:
        model: one of the caller's own. Sizes below 0, as Paddle's exports state them, are opened in it: onnx ends the
            process where a Slice cuts one.
        data_prop: follow the numbers of shapes as well.
    """
    import onnx

    for graph, _ in graphs_below(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")
    return onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
