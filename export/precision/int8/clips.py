"""Clips from 0 to a limit, ReLU6 for one, in a form that scales pass, and back.

``min(max(x, 0), c) = c − relu(c − relu(x))``, of operators that each let a positive scale pass and take their constant
along: a piecewise linear function keeps its form with its break-points scaled (Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", 2019, section 4.1). ONNX's Clip has one limit for all channels. So a
Clip between channels that were scaled comes back as a Relu and a Min with a limit for each channel, which is exact for
every input, and any other as the Clip that it was.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper, numpy_helper

from convbn.export.precision.graphs import FLOAT, captured, names_of

if TYPE_CHECKING:
    import onnx

__all__ = ["SplitClip", "join_clips", "split_clips"]

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True)
class SplitClip:
    """A Clip that stands as four nodes.

    Attributes:
        node: as it was.
        layer: the linear layer in front of it, by name.
        parts: names of the Relu, the Sub, the Relu and the Sub.
    """

    node: onnx.NodeProto
    layer: str
    parts: tuple[str, ...]

    def alike(self, model: onnx.ModelProto) -> bool:
        """Whether both limits are one, as they are unless a shift went on through the first of its Relus."""
        limits = {node.input[0] for node in model.graph.node if node.name in (self.parts[1], self.parts[3])}
        return len(limits) == 1


def split_clips(
    model: onnx.ModelProto, whole: Collection[str] = ()
) -> tuple[onnx.ModelProto, tuple[SplitClip, ...]]:
    """A copy in which every Clip from 0 to a limit, behind a linear layer, stands as four nodes.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`.
        whole: layers whose Clips stay, by name.
    """
    made = type(model)()
    made.CopyFrom(model)
    graph, names = made.graph, names_of(made)
    given = {value.name for value in graph.input}
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in given}
    layers = {node.output[0]: node.name for node in graph.node if node.op_type in _LINEAR}
    nodes: list[onnx.NodeProto] = []
    clips = []
    for node in graph.node:
        layer = layers.get(node.input[0]) if node.input else None
        if layer is None or layer in whole or not _from_0_to_a_limit(node, stored):
            nodes.append(node)
            continue
        values = [names.fresh(f"{node.name}/{what}") for what in ("relu", "below", "bend")]
        limit = node.input[2]
        parts = (
            ("Relu", [node.input[0]], values[0], values[0]),
            ("Sub", [limit, values[0]], values[1], values[1]),
            ("Relu", [values[1]], values[2], values[2]),
            # The last one bears the name that users know.
            ("Sub", [limit, values[2]], node.output[0], node.name),
        )
        nodes += [helper.make_node(op, inputs, [out], name=name) for op, inputs, out, name in parts]
        kept = type(node).FromString(node.SerializeToString())
        clips.append(SplitClip(kept, layer, tuple(part[3] for part in parts)))
    _replace(graph, nodes)
    return made, tuple(clips)


def join_clips(model: onnx.ModelProto, clips: Sequence[SplitClip]) -> list[str]:
    """Make the four nodes of each, in place, a Relu and a Min, or the Clip again where no scale passed.

    Args:
        model: made of what :func:`split_clips` gave; the limits of each Clip are alike.
        clips: of the same.

    Returns:
        The Clips that are a Relu and a Min now, by name.
    """
    graph = model.graph
    nodes = {node.name: node for node in graph.node}
    gone, let_go, scaled = set[str](), set[str](), list[str]()
    for clip in clips:
        first, below, bend, last = (nodes[name] for name in clip.parts)
        gone.update((below.name, bend.name))
        let_go.update((below.input[0], *clip.node.input[1:]))
        if last.input[0] == clip.node.input[2]:
            gone.add(first.name)
            last.CopyFrom(clip.node)
        else:
            last.op_type = "Min"
            last.input[:] = [first.output[0], last.input[0]]
            scaled.append(clip.node.name)
    _replace(graph, [node for node in graph.node if node.name not in gone])
    read = {name for node in graph.node for name in (*node.input, *captured(node))}
    unread = let_go - read - {value.name for value in (*graph.input, *graph.output)}
    kept = [tensor for tensor in graph.initializer if tensor.name not in unread]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return scaled


def _from_0_to_a_limit(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Clip" or node.domain not in ("", "ai.onnx") or len(node.input) != 3:
        return False
    tensors = [stored[name] for name in node.input[1:] if name in stored]
    if len(tensors) < 2 or any(tensor.data_type != FLOAT or tensor.dims for tensor in tensors):
        return False
    low, high = (float(numpy_helper.to_array(tensor)) for tensor in tensors)
    return low == 0 < high < float(np.finfo(np.float32).max)


def _replace(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    made = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(made)
