"""Small facts of ONNX files: how many BatchNorms, what they compute, how far off that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array: TypeAlias = np.ndarray[Any, Any]

__all__ = ["count_batchnorms", "multiply_initializers", "operators", "relative_error", "run_plain"]


def operators(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, also in branches, loop bodies and local functions."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)


def count_batchnorms(model: onnx.ModelProto) -> int:
    """Number of BatchNormalization nodes."""
    return sum(node.op_type == "BatchNormalization" for node in operators(model))


def multiply_initializers(model: onnx.ModelProto, flips: Mapping[str, Array]) -> bool:
    """Multiply initializers by signs in place; False, with nothing done, where a name is not found."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    if not flips.keys() <= stored.keys():
        return False
    for name, signs in flips.items():
        tensor = stored[name]
        tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * signs).astype("f4"), name))
    return True


def run_plain(model: Path | bytes, x: Array) -> list[Array]:
    """Outputs of onnxruntime on the CPU with its optimisations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {session.get_inputs()[0].name: x})
    return outputs


def relative_error(expected: Sequence[Array], actual: Sequence[Array]) -> float | None:
    """Largest ``max|a − e| / max|e|`` over the outputs, all finite; None if they do not pair."""
    import numpy as np

    if len(expected) != len(actual) or any(e.shape != a.shape for e, a in zip(expected, actual, strict=True)):
        return None
    worst = 0.0
    for e, a in zip(expected, actual, strict=True):
        scale = float(np.abs(e).max()) or 1.0
        worst = max(worst, float(np.abs(a.astype(np.float64) - e).max()) / scale)
    return worst
