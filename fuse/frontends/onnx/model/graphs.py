"""The graphs of an ONNX model, the main one and the bodies of control flow, walked without recursion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = [
    "LAYERS",
    "Names",
    "bodies_of",
    "delete",
    "graphs_below",
    "named_bodies",
    "names_of",
    "nodes_below",
    "operators_of",
]


LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
"""Operators that are linear in their data, with a weight at slot 1."""


def named_bodies(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    """The graphs that a node holds, by attribute: branches of an If, the body of a Loop or Scan."""
    found = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append((attribute.name, attribute.g))
        if attribute.graphs:
            found += [(attribute.name, body) for body in attribute.graphs]
    return found


def bodies_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node holds."""
    return [body for _, body in named_bodies(node)]


def nodes_below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of the bodies they hold."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for body in bodies_of(node):
            waiting.extend(body.node)


def graphs_below(graph: onnx.GraphProto) -> Iterator[tuple[onnx.GraphProto, onnx.GraphProto | None]]:
    """A graph and its bodies, each behind the one that holds it, which is given with it."""
    waiting: list[tuple[onnx.GraphProto, onnx.GraphProto | None]] = [(graph, None)]
    for found in waiting:  # which grows
        yield found
        waiting += [(body, found[0]) for node in found[0].node for _, body in named_bodies(node)]


def operators_of(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator is called in the model, bodies of control flow and local functions included."""
    graphs = (graph for graph, _ in graphs_below(model.graph))
    return Counter(node.op_type for part in (*model.functions, *graphs) for node in part.node)


def names_of(model: onnx.ModelProto) -> set[str]:
    """Every name of a tensor or node in the main graph and its bodies."""
    names: set[str] = set()
    for graph, _ in graphs_below(model.graph):
        names.update(v.name for v in (*graph.input, *graph.output, *graph.value_info, *graph.initializer))
        names.update(tensor.values.name for tensor in graph.sparse_initializer)
        for node in graph.node:
            names.update((node.name, *node.input, *node.output))
    return names


def delete(items: Any, names: Iterable[str]) -> None:
    """Delete the messages of these names from a repeated field, for which protobuf has no public type."""
    if names:
        for index in range(len(items) - 1, -1, -1):
            if items[index].name in names:
                del items[index]


class Names:
    """Names in use; counted, so that a thousand calls of one function are no million look-ups."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._last: Counter[str] = Counter()

    def fresh(self, wanted: str) -> str:
        """``wanted``, or with a number behind it where that is taken."""
        name = wanted
        while name in self._taken:
            self._last[wanted] += 1
            name = f"{wanted}_{self._last[wanted] + 1}"
        self._taken.add(name)
        return name
