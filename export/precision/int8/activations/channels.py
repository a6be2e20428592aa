"""The size of every channel that a linear layer reads: what equalisation goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper, numpy_helper

from convbn.export.precision.graphs import FLOAT, names_of, opset_of
from convbn.export.precision.int8.activations.probe import values
from convbn.fuse.equalise import ChannelRange

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration

__all__ = ["channel_ranges"]

_AXES_ARE_AN_INPUT = {"ReduceMax": 18, "ReduceMean": 18}


def channel_ranges(model: onnx.ModelProto, calibration: Calibration) -> dict[str, ChannelRange]:
    """max |x| and E[x²] of each input channel, by the name of the layer that reads it.

    Each value is reduced to two numbers a channel inside the graph, so that memory is that of one inference.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`.
        calibration: the inputs.

    Raises:
        CalibrationError: onnxruntime cannot run the model on these inputs.
    """
    probed = type(model)()
    probed.CopyFrom(model)
    layers = _with_reductions(probed)
    wanted = [name for pair in dict.fromkeys(layers.values()) for name in pair]
    if not wanted:
        return {}
    largest: dict[str, np.ndarray] = {}
    power: dict[str, np.ndarray] = {}
    for found in values(probed, wanted, calibration):
        for name, array in zip(wanted, found, strict=True):
            wide = array.reshape(-1).astype(np.float64)
            if name in largest and wide.shape != largest[name].shape:
                continue  # of a layer whose number of channels is not its own
            largest[name] = np.maximum(largest.get(name, 0.0), wide)
            power[name] = power.get(name, 0.0) + wide
    count = max(len(calibration), 1)
    return {node: ChannelRange(largest[top], power[square] / count) for node, (top, square) in layers.items()}


def _with_reductions(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Add the reductions; by the name of each layer those of what it reads."""
    graph, names, opset = model.graph, names_of(model), opset_of(model)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[tuple[str, int, int], tuple[str, str]] = {}
    layers: dict[str, tuple[str, str]] = {}
    for node in list(graph.node):
        weight = stored.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or weight.data_type != FLOAT or node.input[0] in stored:
            continue
        if node.op_type in ("Conv", "ConvTranspose"):
            key = (node.input[0], len(weight.dims), 1)
        elif node.op_type == "Gemm" and not any(a.name == "transA" and a.i for a in node.attribute):
            key = (node.input[0], 2, 1)
        else:
            continue
        if key not in made:
            source, rank, channel = key
            axes = [axis for axis in range(rank) if axis != channel]
            size, square, top, mean = (
                names.fresh(f"probe_{source}_{what}") for what in ("abs", "sq", "max", "mean")
            )
            graph.node.append(helper.make_node("Abs", [source], [size]))
            graph.node.append(helper.make_node("Mul", [source, source], [square]))
            for operator, given, output in (("ReduceMax", size, top), ("ReduceMean", square, mean)):
                inputs, attributes = [given], dict[str, Any](keepdims=0)
                if opset >= _AXES_ARE_AN_INPUT[operator]:
                    inputs.append(names.fresh("probe_axes"))
                    graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), inputs[1]))
                else:
                    attributes["axes"] = axes
                graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
            made[key] = (top, mean)
        layers[node.name] = made[key]
    return layers
