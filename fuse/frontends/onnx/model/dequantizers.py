"""Integers that several layers share as weights: each reads a DequantizeLinear of its own while BatchNorms are placed.

onnxruntime gives each reader its own when it loads a model, so that a copy costs nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from convbn.fuse.frontends.onnx.model.attributes import is_standard
from convbn.fuse.frontends.onnx.model.graphs import LAYERS, Names, graphs_below, names_of
from convbn.fuse.view.op import WEIGHT

if TYPE_CHECKING:
    import onnx

__all__ = ["join_dequantizers", "part_dequantizers"]

Parted = list[tuple["onnx.GraphProto", list[str]]]
"""The graph, and the outputs of one node and of its copies."""


def part_dequantizers(model: onnx.ModelProto) -> Parted:
    """Copy each DequantizeLinear of stored integers once for each further layer that reads it, in place."""
    names = Names(names_of(model))
    made: Parted = []
    for graph, _ in graphs_below(model.graph):
        stored = {tensor.name for tensor in graph.initializer}
        layers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            if is_standard(node) and node.op_type in LAYERS and len(node.input) > WEIGHT:
                layers[node.input[WEIGHT]].append(node)
        for node in list(graph.node):
            if node.op_type != "DequantizeLinear" or not is_standard(node) or node.input[0] not in stored:
                continue
            readers = layers[node.output[0]][1:]
            copies = [_copy(graph, node, reader, names) for reader in readers]
            if copies:
                made.append((graph, [node.output[0], *copies]))
    return made


def _copy(graph: onnx.GraphProto, node: onnx.NodeProto, reader: onnx.NodeProto, names: Names) -> str:
    """A copy behind the node that ``reader`` reads instead; its output."""
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = names.fresh(node.name or node.output[0])
    output = names.fresh(node.output[0])
    copy.output[0] = reader.input[WEIGHT] = output
    graph.node.insert(next(i for i, other in enumerate(graph.node) if other is node) + 1, copy)
    return output


def join_dequantizers(parted: Parted) -> None:
    """Take out the copies that are still what the first of them is."""
    for graph, outputs in parted:
        found = {node.output[0]: node for node in graph.node if node.output and node.output[0] in outputs}
        kept: dict[bytes, str] = {}
        joined: dict[str, str] = {}
        for name in filter(found.__contains__, outputs):
            same = type(found[name])()
            same.CopyFrom(found[name])
            same.name = ""
            del same.output[:]
            first = kept.setdefault(same.SerializeToString(deterministic=True), name)
            if first != name:
                joined[name] = first
        if not joined:
            continue
        for index in range(len(graph.node) - 1, -1, -1):
            node = graph.node[index]
            if node.output and node.output[0] in joined:
                del graph.node[index]
                continue
            for slot, name in enumerate(node.input):
                if name in joined:
                    node.input[slot] = joined[name]
