"""float16 and bfloat16 as a GPU computes them, on a CPU that has no kernels for them.

onnxruntime's CPU provider computes most float16 nodes in float32 and leaves out the roundings between two of them,
so that a value beyond 65504 passes through unseen. Here the same graph is written in float32, with every tensor
that was float16 or bfloat16 rounded to it once: sums in float32, results in 16 bits. Of bfloat16 convolutions there is
no other way in bounded memory: onnx's reference evaluator unfolds a long signal into one matrix of all its windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.onnx.model.inference import inferred

if TYPE_CHECKING:
    import onnx

__all__ = ["rounded_graph"]

_FLOAT = 1
#: float16 and bfloat16.
_HALF = (10, 16)
#: Shape inference serialises the model, which protobuf allows up to 2 GiB.
_LARGEST = 1_900_000_000


def rounded_graph(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The float32 form of a graph with float16 or bfloat16 in it.

    Args:
        model: left as it is.

    Returns:
        A new model whose outputs are float32, or None where the rewriting does not reach: graphs inside of
        nodes, local functions, models beyond 1.9 GB.
    """
    import onnx

    if model.functions or model.ByteSize() > _LARGEST:
        return None
    if any(
        attribute.HasField("g") or attribute.graphs for n in model.graph.node for attribute in n.attribute
    ):
        return None
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    # Without the annotations, which may contradict what is inferred.
    del graph.value_info[:]
    found = inferred(wide).graph
    half = {t.name: t.data_type for t in model.graph.initializer if t.data_type in _HALF}
    for value in (*found.value_info, *found.input, *found.output):
        if value.type.tensor_type.elem_type in _HALF:
            half[value.name] = value.type.tensor_type.elem_type
    for tensor in graph.initializer:
        if tensor.data_type in _HALF:
            tensor.CopyFrom(_widened(tensor))
    nodes: list[Any] = []
    inputs = {}
    for value in graph.input:
        if value.name in half:
            inputs[value.name] = f"{value.name}::wide"
            nodes.append(onnx.helper.make_node("Cast", [value.name], [inputs[value.name]], to=_FLOAT))
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = inputs.get(name, name)
        _widen_attributes(node)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in half:
                exact, rounded = f"{name}::exact", f"{name}::half"
                node.output[index] = exact
                nodes.append(onnx.helper.make_node("Cast", [exact], [rounded], to=half[name]))
                nodes.append(onnx.helper.make_node("Cast", [rounded], [name], to=_FLOAT))
    for value in graph.output:
        if value.name in half and value.name not in inputs:
            value.type.tensor_type.elem_type = _FLOAT
    del graph.node[:]
    graph.node.extend(nodes)
    return wide


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i in _HALF:
            attribute.i = _FLOAT
        if attribute.HasField("t") and attribute.t.data_type in _HALF:
            attribute.t.CopyFrom(_widened(attribute.t))


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    import numpy as np
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
