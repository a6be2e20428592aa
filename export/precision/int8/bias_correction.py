"""Bias correction: what quantisation adds to a layer's output on average goes into its bias.

``b' = b − E[W_int8·q(x) − W·x]`` by channel, from calibration data (Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", 2019, section 4.2, in its empirical form, with the rounding of x besides that
of W). x is what the layer reads in the float network: then a layer makes up for its own rounding alone, and no
correction hangs on the ones in front of it.

An average over few samples is itself uncertain. The correction d is multiplied by ``d² / (d² + σ²/n)`` with σ² the
variance over n samples, which leaves nothing of one that is as likely chance. Where the outputs of the network do not
come closer to the float ones by it, biases stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from convbn.export.precision.graphs import FLOAT, names_of, opset_of
from convbn.export.precision.int8.activations.outputs import outputs_of, rms_error
from convbn.export.precision.int8.activations.probe import values

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.quantising import Quantised
    from convbn.export.precision.int8.samples import Calibration
    from convbn.fuse.frontends.onnx.model.graphs import Names

__all__ = ["correct_biases"]

_BIASED = ("Conv", "ConvTranspose", "Gemm")
_JUDGED_SAMPLES = 16


def correct_biases(
    quantised: Quantised, original: onnx.ModelProto, calibration: Calibration
) -> tuple[onnx.ModelProto, list[str]]:
    """A quantised model with corrected biases, or as it was where they do not help.

    Args:
        quantised: the model; its nodes keep the names that they have in the original.
        original: what was quantised, prepared, in float32.
        calibration: the inputs.

    Returns:
        The model, and the names of the nodes whose biases changed.

    Raises:
        CalibrationError: onnxruntime cannot run the two on these inputs.
    """
    alone, outputs = _layers_alone(quantised, original)
    if not outputs:
        return quantised.model, []
    seen: dict[str, list[NDArray[np.float64]]] = {name: [] for name in outputs}
    wanted = list(outputs.values())
    for found in values(alone, wanted, calibration):
        for name, array in zip(outputs, found, strict=True):
            seen[name].append(array.reshape(array.shape[0], -1).astype(np.float64))
    result = type(original)()
    result.CopyFrom(quantised.model)
    taken = names_of(result)
    for node in result.graph.node:
        if node.name in seen:
            rows = np.concatenate(seen[node.name])
            mean, squared = rows.mean(axis=0), rows.mean(axis=0) ** 2
            uncertainty = rows.var(axis=0) / len(rows)
            kept = np.divide(squared, squared + uncertainty, out=np.zeros_like(mean), where=squared > 0)
            _shift_bias(result, node, -mean * kept, taken)
    few = calibration.limited(_JUDGED_SAMPLES)
    reference = outputs_of(original, few)
    before, after = (rms_error(reference, outputs_of(model, few)) for model in (quantised.model, result))
    return (result, list(outputs)) if after < before else (quantised.model, [])


def _layers_alone(quantised: Quantised, original: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The float network with each quantised layer beside its own; by layer the value that holds what it is off."""
    made = type(original)()
    made.CopyFrom(original)
    graph, names = made.graph, names_of(made)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    graph.initializer.extend(
        tensor for tensor in quantised.model.graph.initializer if tensor.name not in stored
    )
    own = {node.name: node for node in original.graph.node}
    outputs: dict[str, str] = {}
    for node in quantised.model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.name not in own:
            graph.node.add().CopyFrom(node)
        bias = node.input[2] if len(node.input) > 2 else ""
        if (
            node.name not in quantised.nodes
            or node.op_type not in _BIASED
            or (bias and not _is_row(stored.get(bias)))
        ):
            continue
        if any(a.name == "beta" and a.f != 1 for a in node.attribute):
            continue
        beside, gap = (names.fresh(f"{node.output[0]}/{what}") for what in ("int8", "gap"))
        graph.node.add().CopyFrom(node)
        graph.node[-1].name, graph.node[-1].output[0] = names.fresh(f"{node.name}/int8"), beside
        graph.node.append(helper.make_node("Sub", [beside, node.output[0]], [gap]))
        outputs[node.name] = gap
        rank = len(stored[own[node.name].input[1]].dims)
        if rank > 2:
            outputs[node.name] = names.fresh(f"{gap}/mean")
            graph.node.append(_mean(graph, names, opset_of(made), gap, outputs[node.name], range(2, rank)))
    return made, outputs


def _mean(
    graph: onnx.GraphProto, names: Names, opset: int, source: str, target: str, axes: Sequence[int]
) -> onnx.NodeProto:
    inputs, attributes = [source], dict[str, Any]()
    if opset >= 18:
        inputs.append(names.fresh("axes"))
        graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), inputs[1]))
    else:
        attributes["axes"] = list(axes)
    return helper.make_node("ReduceMean", inputs, [target], keepdims=1, **attributes)


def _is_row(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type == FLOAT and len(tensor.dims) == 1


def _shift_bias(model: onnx.ModelProto, node: onnx.NodeProto, shift: np.ndarray, names: Names) -> None:
    """Add to the bias of one node; others that share it keep theirs."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    name = node.input[2] if len(node.input) > 2 else ""
    before = numpy_helper.to_array(stored[name]).astype(np.float64) if name else 0.0
    array = np.asarray(before + shift, np.float32)
    readers = sum(list(other.input).count(name) for other in model.graph.node) if name else 0
    if readers == 1:
        stored[name].CopyFrom(numpy_helper.from_array(array, name))
        return
    new = names.fresh(f"{name or node.name + '/bias'}_corrected")
    model.graph.initializer.append(numpy_helper.from_array(array, new))
    if len(node.input) > 2:
        node.input[2] = new
    else:
        node.input.append(new)
