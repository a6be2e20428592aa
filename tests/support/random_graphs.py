"""Random graphs for property tests: what they may hold, and how two of them are compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from support.graphs import model, random, relative_error, run
from support.random_steps import STEPS, Growth, Shape, batchnorm, conv

ELEMENT: dict[str, tuple[Any, int, float]] = {
    "float32": (np.float32, TensorProto.FLOAT, 2.0**-24),
    "float64": (np.float64, TensorProto.DOUBLE, 2.0**-24),  # compared in float32
    "float16": (np.float16, TensorProto.FLOAT16, 2.0**-11),
    "bfloat16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16, 2.0**-8),
}
"""By name: NumPy's type, ONNX's, and the unit roundoff of what is compared."""


@st.composite
def graphs(
    draw: Any, kind: str = "float32", statistics: str | None = None, longest: int = 12
) -> onnx.ModelProto:
    """A graph over floats of one kind; its BatchNorms' parameters may be of another.

    bfloat16 needs the operators of opset 22, the others are those of 20.
    """
    dtype, element, _ = ELEMENT[kind]
    g = Growth(draw, dtype, ELEMENT[statistics or kind][0])
    shape = draw(
        st.sampled_from([(2, 4, 6, 6), (2, 4, 6, 6), (1, 6, 5, 7), (3, 5, 9), (2, 4, 3, 4, 5), (2, 3, 1, 8)])
    )
    g.values.append(("x", shape))
    # Sometimes of a few kinds of steps only, so that they meet each other more often.
    few = [*draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=5)), conv, batchnorm]
    steps = draw(st.sampled_from([STEPS, few]))
    for _ in range(draw(st.integers(3, longest))):
        draw(st.sampled_from(steps))(g)
        if math.prod(g.values[-1][1]) > 20_000:
            break
    if not g.nodes:
        batchnorm(g)
    read = {name for node in g.nodes for name in node.input}
    read |= {
        n for node in g.nodes for a in node.attribute if a.HasField("g") for b in a.g.node for n in b.input
    }
    outputs = [name for name, _ in g.values if name not in read and name != "x"]
    if draw(st.booleans()):
        outputs.append(draw(st.sampled_from([name for name, _ in g.values[1:]])))
    batch = draw(st.sampled_from([shape[0], "n"]))
    opset = 22 if kind == "bfloat16" else 20
    built = model(
        g.nodes,
        {"x": [batch, *shape[1:]]},
        list(dict.fromkeys(outputs)),
        g.tensors,
        elem_type=element,
        opset=opset,
    )
    built.metadata_props.add(key="shape", value=",".join(map(str, shape)))
    return built


def shape_of(built: onnx.ModelProto) -> Shape:
    """Of the input, as it was drawn."""
    return tuple(int(n) for n in built.metadata_props[0].value.split(","))


def in_one_type(built: onnx.ModelProto, element: int, jitter: float = 0.0) -> onnx.ModelProto:
    """The same model with every float of the one type ``element``, float32 or float64.

    Runtimes do not compute in every type; what a fold stores can be seen all the same. ``jitter`` changes every
    stored number by up to that much of itself, at each reader in another way: what the model makes of it is what it
    makes of rounding.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(built)
    rng = np.random.default_rng(5)
    floats = {kind for _, kind, _ in ELEMENT.values()}
    dtype = helper.tensor_dtype_to_np_dtype(element)
    waiting = [copy.graph]
    while waiting:
        graph = waiting.pop()
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in floats:
                value.type.tensor_type.elem_type = element
        if jitter:
            _read_apart(graph)
        # These are no numbers of the network: a size that is rounded down would be another.
        scales = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
        for tensor in graph.initializer:
            if tensor.data_type in floats and tensor.name not in scales:
                array = numpy_helper.to_array(tensor).astype(np.float64)
                array = array * (1 + jitter * rng.choice([-1, 1], array.shape))
                tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
        waiting += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return copy


def _read_apart(graph: onnx.GraphProto) -> None:
    """Give each reader an initializer of its own: two that read one err alike, and their difference not at all."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter[str]()
    for node in graph.node:
        for slot, name in enumerate(node.input):
            readers[name] += name in stored
            if readers[name] > 1:
                node.input[slot] = f"{name} of {node.name}, input {slot}"
                graph.initializer.add().CopyFrom(stored[name])
                graph.initializer[-1].name = node.input[slot]


def in_float32(built: onnx.ModelProto, jitter: float = 0.0) -> onnx.ModelProto:
    return in_one_type(built, TensorProto.FLOAT, jitter)


def difference(built: onnx.ModelProto, other: onnx.ModelProto, kind: str) -> tuple[float, float]:
    """The relative error between two models, and how much of it rounding may explain."""
    feeds: Mapping[str, np.ndarray] = {"x": random(*shape_of(built), seed=1)}
    reference = run(in_float32(built), feeds)
    seen = [i for i, array in enumerate(reference) if np.isfinite(array).all() and np.abs(array).max() > 0]
    roundoff = ELEMENT[kind][2]
    allowed = max(1e-4, 8 * roundoff)
    if not seen:
        return 0.0, allowed
    given = run(in_float32(other), feeds)
    error = relative_error([reference[i] for i in seen], [given[i] for i in seen])
    if error > allowed:
        shaken = run(in_float32(built, jitter=max(roundoff, 1e-6)), feeds)
        allowed = max(allowed, 100 * relative_error([reference[i] for i in seen], [shaken[i] for i in seen]))
    return error, allowed


def outlined(built: onnx.ModelProto, first: int, last: int) -> onnx.ModelProto:
    """The same model with the nodes from ``first`` to before ``last`` in a function of its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(built)
    nodes = list(built.graph.node)
    inside, outside = nodes[first:last], [*nodes[:first], *nodes[last:]]
    made = [name for node in inside for name in node.output]
    read = [name for node in inside for name in _read_by(node) if name and name not in made]
    seen = {name for node in outside for name in _read_by(node)} | {
        value.name for value in built.graph.output
    }
    inputs, outputs = list(dict.fromkeys(read)), [name for name in made if name in seen]
    body = [onnx.NodeProto.FromString(node.SerializeToString()) for node in inside]
    opsets = [helper.make_opsetid("", built.opset_import[0].version)]
    copy.functions.append(helper.make_function("local", "outlined", inputs, outputs, body, opsets))
    copy.opset_import.append(helper.make_opsetid("local", 1))
    call = helper.make_node("outlined", inputs, outputs, name="call", domain="local")
    del copy.graph.node[:]
    copy.graph.node.extend([*nodes[:first], call, *nodes[last:]])
    return copy


def _read_by(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those that its bodies capture among them."""
    bodies = [a.g for a in node.attribute if a.HasField("g")]
    own = {name for body in bodies for inner in body.node for name in inner.output}
    captured = [name for body in bodies for inner in body.node for name in inner.input if name not in own]
    return [*node.input, *captured]
