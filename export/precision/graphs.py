"""What a conversion must know of an ONNX graph, and the form it is brought into first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from convbn.errors import UsageError
from convbn.fuse.frontends.onnx.model.graphs import Names, bodies_of, nodes_below
from convbn.fuse.frontends.onnx.model.inference import inferred

if TYPE_CHECKING:
    import onnx

__all__ = [
    "FLOAT",
    "captured",
    "element_types",
    "names_of",
    "opset_of",
    "prepared",
    "refuse_unknown_nodes",
    "rename_in_bodies",
]

FLOAT = 1
"""TensorProto.FLOAT."""

#: float16, float64 and bfloat16.
_STORED = (10, 11, 16)

# Shape inference reads the values of small tensors; larger ones are weights.
_SMALL = 1024


def names_of(model: onnx.ModelProto) -> Names:
    """The names that a model uses, and new ones beside them."""
    graph = model.graph
    taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for node in nodes_below(graph.node):
        taken.update((node.name, *node.input, *node.output))
    return Names(taken)


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without local functions and float32 Constant nodes, in which every node has a name of its own.

    Constants become initializers, so that each reader can be given them in its own precision.
    """
    import onnx
    import onnx.inliner

    if model.functions:
        result = onnx.inliner.inline_local_functions(model)
    else:
        result = onnx.ModelProto()
        result.CopyFrom(model)
    graph = result.graph
    outputs = {value.name for value in graph.output}
    nodes = []
    for node in graph.node:
        tensor = _float_constant(node) if node.op_type == "Constant" and node.domain == "" else None
        if tensor is None or node.output[0] in outputs:
            nodes.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(nodes)
    _widen_stored(graph)
    # An initializer says itself what it is; an annotation beside it can only contradict.
    stored = {tensor.name for tensor in graph.initializer}
    annotations = [value for value in graph.value_info if value.name not in stored]
    del graph.value_info[:]
    graph.value_info.extend(annotations)
    names, seen = names_of(result), set()
    for node in graph.node:
        if not node.name or node.name in seen:
            node.name = names.fresh(node.name or f"{node.op_type}_{node.output[0]}")
        seen.add(node.name)
    return result


def _widen_stored(graph: onnx.GraphProto) -> None:
    """Weights that are stored in another float type and cast before they are used, as the float32 they become."""
    import numpy as np
    from onnx import numpy_helper

    given = {value.name for value in graph.input}
    outputs = {value.name for value in graph.output}
    stored = {t.name: t for t in graph.initializer if t.data_type in _STORED and t.name not in given}
    casts = [
        node
        for node in graph.node
        if node.op_type == "Cast"
        and node.input[0] in stored
        and node.output[0] not in outputs
        and any(a.name == "to" and a.i == FLOAT for a in node.attribute)
    ]
    for node in casts:
        array = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        graph.node.remove(node)


def refuse_unknown_nodes(model: onnx.ModelProto, wanted: Iterable[str]) -> None:
    """Refuse names that no node of a model has, nor can have once it is folded.

    Local functions are inlined then, and a node without a name is named by its type and by an output that may
    have become another: what these may be called is not judged here.

    Raises:
        UsageError: there is no such node.
    """
    if model.functions:
        return
    nodes = list(model.graph.node)
    known = {node.name for node in nodes}
    open_ends = tuple({f"{node.op_type}_" for node in nodes if not node.name})
    repeated = tuple(
        f"{name}_" for name, count in Counter(n.name for n in nodes).items() if name and count > 1
    )
    for name in wanted:
        if name not in known and not name.startswith(open_ends + repeated):
            close = get_close_matches(name, known, n=1)
            hint = f"is {close[0]!r} meant?" if close else "names are those of the folded model"
            raise UsageError(f"there is no node {name!r} to keep in float32", hint=hint)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each tensor of the main graph, as far as inference knows it.

    Large weights are left out of what is inferred over, which keeps a model of any size inside protobuf's
    limit.
    """
    import onnx

    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    found = inferred(light).graph
    types = {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}
    for value in (*model.graph.value_info, *found.value_info, *found.output, *found.input):
        kind = value.type
        if kind.HasField("tensor_type") and kind.tensor_type.elem_type:
            types[value.name] = int(kind.tensor_type.elem_type)
    return types


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that a node's bodies use and do not define; ONNX lets no body define a name anew."""
    used: set[str] = set()
    defined: set[str] = set()
    waiting = list(bodies_of(node))
    while waiting:
        body = waiting.pop()
        defined.update(value.name for value in (*body.input, *body.initializer))
        used.update(value.name for value in body.output)
        for inner in body.node:
            used.update(inner.input)
            defined.update(inner.output)
            waiting.extend(bodies_of(inner))
    return used - defined - {""}


def rename_in_bodies(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Let the bodies of a node read other values of the graph around them."""
    for body in bodies_of(node):
        for value in body.output:
            value.name = names.get(value.name, value.name)
        for inner in body.node:
            for index, name in enumerate(inner.input):
                inner.input[index] = names.get(name, name)
            rename_in_bodies(inner, names)


def _float_constant(node: onnx.NodeProto) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type == FLOAT:
            return attribute.t
        if attribute.name == "value_float":
            return helper.make_tensor("", FLOAT, [], [attribute.f])
        if attribute.name == "value_floats":
            return helper.make_tensor("", FLOAT, [len(attribute.floats)], list(attribute.floats))
    return None
