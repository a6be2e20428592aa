"""The int8 graph: QuantizeLinear and DequantizeLinear around what linear layers read, as TensorRT's parser takes them.

The inputs and weights of the chosen operators are quantised and nothing else: symmetric, inputs by a pair of
QuantizeLinear and DequantizeLinear, weights by output channel and stored as int8. Biases stay float32, which TensorRT
wants, and outputs are left alone, which would put a rounding between a convolution and its activation.

TensorRT adds the other branch of a residual block inside of the convolution's kernel, where that branch comes
quantised ("Working with Quantized Types", Q/DQ placement: "quantize the residual input in skip-connections"). So of an
Add the branch that does not come straight from a quantised layer is quantised, and the other is not: a pair there
would part the layer from its Add.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convbn.export.precision.errors import PrecisionError
from convbn.export.precision.graphs import names_of
from convbn.export.precision.int8.activations.threshold import LEVELS
from convbn.export.precision.options import ENDS
from convbn.export.precision.selection import Kept

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.options import PrecisionOptions

__all__ = [
    "Quantised",
    "activations_of",
    "chosen_nodes",
    "left_in_float32",
    "quantise",
    "through_quantisation",
]


@dataclass
class Quantised:
    """A quantised model.

    Attributes:
        model: the model.
        nodes: names of the nodes that compute with quantised inputs.
        stands_for: what each DequantizeLinear's output was before, by name.
    """

    model: onnx.ModelProto
    nodes: list[str]
    stands_for: dict[str, str] = field(default_factory=dict)


def left_in_float32(model: onnx.ModelProto, options: PrecisionOptions) -> tuple[Kept, ...]:
    """Nodes of the chosen operators that are not quantised: those named, and those without constant weights."""
    stored = {tensor.name for tensor in model.graph.initializer}
    candidates = [node for node in model.graph.node if node.op_type in options.quantise]
    asked = set(options.keep_fp32)
    weighted = [n.name for n in candidates if n.op_type != "Add" and n.input[1] in stored]
    named = {node.name for node in model.graph.node}
    ends = {
        end: name for end, name in zip(ENDS, (weighted[:1], weighted[-1:]), strict=True) if end not in named
    }
    asked.update(name for end, names in ends.items() if end in asked for name in names)
    kept = []
    for node in candidates:
        constant = [name in stored for name in node.input[:2]]
        if node.name in asked:
            kept.append(Kept(node.name, node.op_type, "asked for", "the options name it"))
        elif node.op_type == "Add" and any(constant):
            kept.append(Kept(node.name, node.op_type, "operator", "it adds a constant, which is no residual"))
        elif node.op_type != "Add" and not constant[1]:
            kept.append(Kept(node.name, node.op_type, "operator", "its second input is no constant weight"))
        elif node.op_type != "Add" and constant[0]:
            kept.append(Kept(node.name, node.op_type, "operator", "its first input is a constant"))
    return tuple(kept)


def chosen_nodes(
    model: onnx.ModelProto, options: PrecisionOptions, kept: Iterable[Kept]
) -> list[onnx.NodeProto]:
    """The nodes that are to be quantised.

    Raises:
        PrecisionError: there are none.
    """
    left = {node.node for node in kept}
    wanted = [n for n in model.graph.node if n.op_type in options.quantise and n.name not in left]
    if not wanted:
        operators = " or ".join(options.quantise)
        raise PrecisionError(f"there is nothing to quantise: no {operators} outside of what stays in float32")
    return wanted


def activations_of(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, list[str]]:
    """The values that each node reads quantised, by the node's name."""
    producers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    chosen = {node.name for node in nodes}
    found: dict[str, list[str]] = {}
    for node in nodes:
        found[node.name] = [node.input[0]]
        if node.op_type == "Add":
            sources = [producers.get(name) for name in node.input]
            straight = [
                source is not None
                and source.name in chosen
                and source.op_type != "Add"
                and readers[name] == 1
                for source, name in zip(sources, node.input, strict=True)
            ]
            # Of two branches that both end in a layer, the first takes the other one in.
            beside = list(node.input)
            if any(straight):
                beside = [node.input[straight.index(False) if False in straight else 1]]
            found[node.name] = list(dict.fromkeys(beside))
    return found


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a weight that output channels lie on; of a ConvTranspose's they are those of one group."""
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return (
        0
        if node.op_type == "Conv" or (node.op_type == "Gemm" and turned)
        else -1
        if node.op_type == "MatMul"
        else 1
    )


def quantise(
    model: onnx.ModelProto,
    nodes: Collection[str],
    reads: Mapping[str, Sequence[str]],
    ends: Mapping[str, float],
) -> Quantised:
    """Quantise what some nodes read.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`, in opset 13 or later, which scales by
            channel need; left as it is.
        nodes: names of those nodes.
        reads: see :func:`activations_of`.
        ends: the value that 127 stands for, by the name of a value.
    """
    made = type(model)()
    made.CopyFrom(model)
    return _Quantiser(made, reads, ends).run(set(nodes))


def through_quantisation(
    model: onnx.ModelProto, stands_for: Mapping[str, str], beyond: Mapping[str, str]
) -> dict[str, str]:
    """Values that a type cannot hold, with what they are after a QuantizeLinear and DequantizeLinear.

    Args:
        model: quantised.
        stands_for: see :class:`Quantised`.
        beyond: tensors of the model before, each with a sentence.

    Returns:
        The same, and the outputs of the DequantizeLinear nodes that give those tensors back.
    """
    from convbn.export.precision.float16.ranges import weights_out_of_range

    given = {made: beyond[name] for made, name in stands_for.items() if name in beyond}
    return {**beyond, **weights_out_of_range(model), **given}


class _Quantiser:
    def __init__(
        self, model: onnx.ModelProto, reads: Mapping[str, Sequence[str]], ends: Mapping[str, float]
    ) -> None:
        self.model, self.reads, self.ends = model, reads, ends
        self.names = names_of(model)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.known: dict[tuple[str, int | None], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.stands_for: dict[str, str] = {}

    def run(self, wanted: set[str]) -> Quantised:
        graph, quantised = self.model.graph, []
        for node in graph.node:
            if node.name in wanted:
                quantised.append(node.name)
                places = {name: place for place, name in enumerate(node.input)}
                for name in self.reads[node.name]:
                    node.input[places[name]] = self._activation(name)
                if node.op_type != "Add":
                    node.input[1] = self._weight(node.input[1], node)
            self.nodes.append(node)
        made = [type(node).FromString(node.SerializeToString()) for node in self.nodes]
        del graph.node[:]
        graph.node.extend(made)
        self._drop_unread_weights()
        return Quantised(self.model, sorted(quantised), self.stands_for)

    def _activation(self, name: str) -> str:
        if (name, None) not in self.known:
            step = np.array(max(self.ends[name], 0.0) / LEVELS or 1.0 / LEVELS, np.float32)
            pair = (
                self._store(f"{name}_scale", step),
                self._store(f"{name}_zero_point", np.zeros((), np.int8)),
            )
            low = self._node("QuantizeLinear", [name, *pair], f"{name}_QuantizeLinear")
            self.known[name, None] = self._node("DequantizeLinear", [low, *pair], f"{name}_DequantizeLinear")
            self.stands_for[self.known[name, None]] = name
        return self.known[name, None]

    def _weight(self, name: str, node: onnx.NodeProto) -> str:
        from onnx import numpy_helper

        array = numpy_helper.to_array(self.weights[name]).astype(np.float64)
        axis = output_axis(node) % array.ndim
        key = (name, axis)
        if key not in self.known:
            others = tuple(i for i in range(array.ndim) if i != axis)
            largest = np.abs(array).max(axis=others, initial=0.0)
            step = np.where(largest > 0, largest, 1.0) / LEVELS
            # What is rounded to is what the stored scale gives back.
            stored = np.maximum(step.astype(np.float32), np.finfo(np.float32).tiny)
            shape = [1] * array.ndim
            shape[axis] = -1
            low = np.clip(np.rint(array / stored.astype(np.float64).reshape(shape)), -LEVELS, LEVELS)
            parts = (
                self._store(f"{name}_quantized", low.astype(np.int8)),
                self._store(f"{name}_scale", stored),
                self._store(f"{name}_zero_point", np.zeros(stored.shape, np.int8)),
            )
            self.known[key] = self._node(
                "DequantizeLinear", list(parts), f"{name}_DequantizeLinear", axis=axis
            )
            self.stands_for[self.known[key]] = name
        return self.known[key]

    def _store(self, name: str, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = self.names.fresh(name)
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        from onnx import helper

        output = self.names.fresh(f"{name}_Output")
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=self.names.fresh(name), **attributes)
        )
        return output

    def _drop_unread_weights(self) -> None:
        from convbn.fuse.frontends.onnx.model.graphs import nodes_below

        graph = self.model.graph
        read = {name for node in nodes_below(graph.node) for name in node.input}
        read |= {value.name for value in (*graph.output, *graph.input)}
        gone = {name for name in self.stands_for.values() if name in self.weights and name not in read}
        kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
        del graph.initializer[:]
        graph.initializer.extend(kept)
