"""The kinds of ONNX models in memory: protobuf messages and onnx-graphsurgeon graphs."""

from __future__ import annotations

from typing import Any

from convbn.fuse.frontends.frontend import Capture, Frontend, Request

__all__ = ["FRONTENDS"]


def _model(model: Any, request: Request) -> Capture:
    from convbn.fuse.frontends.onnx.capture import capture_model

    return capture_model(
        model,
        owned=request.owned,
        freeze=request.freeze,
        read=request.read,
        input_shapes=request.input_shapes,
    )


def _graph(graph: Any, request: Request) -> Capture:
    from convbn.fuse.frontends.onnx.graphsurgeon import capture_graph

    return capture_graph(graph)


def _exported(graph: Any) -> Any:
    from convbn.fuse.frontends.onnx.graphsurgeon import as_model

    return as_model(graph)


FRONTENDS = (
    Frontend("onnx", "onnx", "ModelProto", _model),
    Frontend("onnx-graphsurgeon", "onnx_graphsurgeon", "Graph", _graph, _exported),
)
