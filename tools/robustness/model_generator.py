"""Small valid models of many kinds, each a few kilobytes, to be broken afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Specimen", "grow"]

CHANNELS, SIZE = 4, 6


@dataclass
class Specimen:
    """A model, and the bytes of its external data file where it has one."""

    name: str
    model: onnx.ModelProto
    data: bytes | None = None


@dataclass
class _Garden:
    """A graph that grows node by node."""

    rng: np.random.Generator
    opset: int
    dtype: type = np.float32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, array: np.ndarray, stem: str = "w") -> str:
        name = self.name(stem)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(
            (self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(self.dtype)
        )

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        target = self.name("t")
        self.nodes.append(helper.make_node(operator, inputs, [target], self.name(operator), **attributes))
        return target

    def conv(self, x: str, kernel: int = 3, groups: int = 1) -> str:
        w = self.weight(CHANNELS, CHANNELS // groups, kernel, kernel)
        bias = [self.weight(CHANNELS)] if self.rng.random() < 0.5 else []
        return self.add("Conv", x, w, *bias, pads=[kernel // 2] * 4, group=groups)

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), "i")

    def told(self, operator: str, since: int, x: str, **values: list[int]) -> str:
        """A node whose integers are inputs since some opset, and were attributes before."""
        if self.opset < since:
            return self.add(operator, x, **values)
        return self.add(operator, x, *(self.integers(*numbers) for numbers in values.values()))

    def batchnorm(self, x: str) -> str:
        vectors = [
            self.rng.uniform(0.5, 1.5, CHANNELS) * self.rng.choice([-1, 1], CHANNELS),
            self.rng.standard_normal(CHANNELS),
            self.rng.standard_normal(CHANNELS),
            self.rng.uniform(0.5, 1.5, CHANNELS),
        ]
        return self.add("BatchNormalization", x, *(self.constant(v.astype(self.dtype), "p") for v in vectors))


def grow(seed: int) -> Specimen:
    """A model that this seed stands for; the same one every time."""
    rng = np.random.default_rng(seed)
    dtype = np.float16 if rng.random() < 0.15 else np.float32
    opset = int(rng.choice([9, 11, 13, 17, 20]))
    garden = _Garden(rng, opset, dtype)
    x = "x"
    for _ in range(int(rng.integers(1, 4))):
        x = _BLOCKS[int(rng.integers(len(_BLOCKS)))](garden, x)
    element = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    graph = helper.make_graph(
        garden.nodes,
        "specimen",
        [helper.make_tensor_value_info("x", element, ["N", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info(x, element, None)],
        garden.tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    specimen = Specimen(f"grown-{seed}", model)
    kind = rng.random()
    if kind < 0.15:
        _branch(specimen, element)
    elif kind < 0.3:
        _function(specimen)
    elif kind < 0.5:
        _externalise(specimen)
    return specimen


def _plain(g: _Garden, x: str) -> str:
    return g.batchnorm(g.conv(x))


def _activated(g: _Garden, x: str) -> str:
    return g.add("Relu", _plain(g, x))


def _residual(g: _Garden, x: str) -> str:
    return g.add("Add", _plain(g, x), g.batchnorm(x))


def _preactivated(g: _Garden, x: str) -> str:
    return g.add("Add", x, g.conv(g.add("Relu", g.batchnorm(x))))


def _parallel(g: _Garden, x: str) -> str:
    return g.add("Add", g.add("Add", _plain(g, x), g.batchnorm(g.conv(x, 1))), g.batchnorm(x))


def _depthwise(g: _Garden, x: str) -> str:
    return g.batchnorm(g.conv(g.batchnorm(g.conv(x, groups=CHANNELS)), 1))


def _pooled(g: _Garden, x: str) -> str:
    pooled = g.add("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    return g.batchnorm(g.add("MaxPool", g.conv(pooled), kernel_shape=[3, 3], pads=[1] * 4))


def _alone(g: _Garden, x: str) -> str:
    return g.batchnorm(g.add("Sigmoid", x))


def _last(g: _Garden, x: str) -> str:
    """Channels behind everything else, a linear layer, and back again."""
    behind = g.add("Transpose", x, perm=[0, 2, 3, 1])
    mapped = g.add("Add", g.add("MatMul", behind, g.weight(CHANNELS, CHANNELS)), g.weight(CHANNELS))
    return g.batchnorm(g.add("Transpose", mapped, perm=[0, 3, 1, 2]))


def _framed(g: _Garden, x: str) -> str:
    padded = g.told("Pad", 11, g.conv(x), pads=[0, 0, 1, 1, 0, 0, 1, 1])
    return g.batchnorm(g.add("MaxPool", padded, kernel_shape=[3, 3]))


def _cropped(g: _Garden, x: str) -> str:
    padded = g.told("Pad", 11, g.conv(x), pads=[0, 0, 0, 0, 0, 0, 1, 0])
    return g.batchnorm(g.told("Slice", 10, padded, starts=[0], ends=[SIZE], axes=[2]))


def _attended(g: _Garden, x: str) -> str:
    weights = g.add("Softmax", g.conv(x, 1), axis=-1 if g.opset >= 13 else 3)
    return g.batchnorm(g.add("MatMul", weights, g.batchnorm(x)))


def _gated(g: _Garden, x: str) -> str:
    conv = g.conv(x)
    if g.opset < 18:
        mean = g.add("ReduceMean", g.batchnorm(conv), axes=[2, 3], keepdims=1)
    else:
        mean = g.add("ReduceMean", g.batchnorm(conv), g.integers(2, 3), keepdims=1)
    return g.batchnorm(g.add("Mul", conv, g.add("Sigmoid", mean)))


def _joined(g: _Garden, x: str) -> str:
    joined = g.add("Concat", _plain(g, x), g.conv(x, 1), axis=1)
    return g.batchnorm(g.told("Slice", 10, joined, starts=[2], ends=[2 + CHANNELS], axes=[1]))


def _transposed(g: _Garden, x: str) -> str:
    weight = g.weight(CHANNELS, CHANNELS, 3, 3)
    return g.batchnorm(g.add("ConvTranspose", x, weight, pads=[1] * 4))


_BLOCKS: list[Callable[[_Garden, str], str]] = [
    _plain,
    _activated,
    _residual,
    _preactivated,
    _parallel,
    _depthwise,
    _pooled,
    _alone,
    _last,
    _framed,
    _cropped,
    _attended,
    _gated,
    _joined,
    _transposed,
]


def _branch(specimen: Specimen, element: int) -> None:
    """The whole graph becomes one branch of an If; the other one hands the input on."""
    graph = specimen.model.graph
    output = graph.output[0].name
    body = onnx.GraphProto(name="then", node=graph.node, initializer=graph.initializer)
    body.output.add(name=output).CopyFrom(helper.make_tensor_value_info(output, element, None))
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"], "same")],
        "else",
        [],
        [helper.make_tensor_value_info("same", element, None)],
    )
    del graph.node[:], graph.initializer[:]
    graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))
    graph.node.append(helper.make_node("If", ["which"], [output], "if", then_branch=body, else_branch=other))


def _function(specimen: Specimen) -> None:
    """The last node moves into a model-local function."""
    model = specimen.model
    node = model.graph.node[-1]
    body = onnx.NodeProto()
    body.CopyFrom(node)
    inputs, outputs = [f"i{i}" for i in range(len(node.input))], ["o"]
    body.input[:], body.output[:] = inputs, outputs
    function = helper.make_function("local", "F", inputs, outputs, [body], [model.opset_import[0]])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    node.op_type, node.domain = "F", "local"
    del node.attribute[:]


def _externalise(specimen: Specimen) -> None:
    """All weights move into a file beside the model; onnxruntime wants axes and sizes in the model itself."""
    data = bytearray()
    for tensor in specimen.model.graph.initializer:
        if tensor.data_type == TensorProto.INT64:
            continue
        raw = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", len(data)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        data += raw
    specimen.data = bytes(data)
