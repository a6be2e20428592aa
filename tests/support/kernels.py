"""Which kernels a runtime executes for a model: counted in what it makes of it, without a clock."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

__all__ = ["COUNTERS", "executed_by_onnxruntime", "executed_by_openvino"]

_IN_BLOCKS = "_bn_nchwc"
"""In the name of the convolution that onnxruntime's NchwcTransformer makes of a BatchNorm."""


def executed_by_onnxruntime(model: onnx.ModelProto) -> Counter[str]:
    """The nodes of the graph that onnxruntime saves after all its optimisations, by kind.

    What a convolution does on its way stands behind a plus sign: ``Conv+Relu``, ``Conv+sum``. A BatchNorm that it runs
    as a depthwise convolution, in blocks of channels, is counted as what it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(map(_kind, graph.node))


def _kind(node: onnx.NodeProto) -> str:
    if node.op_type not in ("Conv", "FusedConv", "FusedGemm"):
        return str(node.op_type)
    activation = next((a.s.decode() for a in node.attribute if a.name == "activation"), "")
    plain = "BatchNormalization" if _IN_BLOCKS in node.name else node.op_type
    parts = ["Conv" if plain == "FusedConv" else plain]
    if node.op_type != "FusedGemm" and len(node.input) > 3 and node.input[3]:
        parts.append("sum")
    return "+".join([*parts, activation] if activation else parts)


def executed_by_openvino(model: onnx.ModelProto) -> Counter[str]:
    """The layers of OpenVINO's runtime model on the CPU, by kind; what it computes of constants it computes once."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
        nodes = compiled.get_runtime_model().get_ordered_ops()
    constant: set[str] = set()
    executed: Counter[str] = Counter()
    for node in nodes:
        kind, name = _layer_type(node), node.get_friendly_name()
        sources = [node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size())]
        if kind == "Const" or (sources and constant.issuperset(sources)):
            constant.add(name)
        elif kind not in ("Input", "Output"):
            executed[kind] += 1
    return executed


def _layer_type(node: Any) -> str:
    value = node.get_rt_info()["layerType"]
    return str(getattr(value, "value", value))


COUNTERS: Mapping[str, Callable[[onnx.ModelProto], Counter[str]]] = {
    "onnxruntime": executed_by_onnxruntime,
    "openvino": executed_by_openvino,
}
