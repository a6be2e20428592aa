"""Which model-local functions call which, and which of them a BatchNorm's map may come to.

Every BatchNorm's data is followed, both ways, through operators that may pass a map on and across the borders of
functions, up to the layers that would take it in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from convbn.errors import BadInputError
from convbn.fuse.frontends.onnx.local_functions.inliner import FunctionKey, called
from convbn.fuse.frontends.onnx.model.graphs import LAYERS, bodies_of, nodes_below
from convbn.fuse.operators.registry import passes_maps

if TYPE_CHECKING:
    import onnx

__all__ = ["callees_first", "concerned"]


def callees_first(functions: dict[FunctionKey, onnx.FunctionProto]) -> list[FunctionKey]:
    """The functions in an order in which each comes behind those it calls."""
    calls = {
        key: list(dict.fromkeys(k for n in nodes_below(f.node) if (k := called(n)) in functions))
        for key, f in functions.items()
    }
    order: list[FunctionKey] = []
    state: dict[FunctionKey, bool] = {}
    for root in functions:
        stack = [(root, iter(calls[root]))] if root not in state else []
        state.setdefault(root, False)
        while stack:
            key, rest = stack[-1]
            below = next(rest, None)
            if below is None:
                state[key] = True
                order.append(key)
                stack.pop()
            elif below not in state:
                state[below] = False
                stack.append((below, iter(calls[below])))
            elif not state[below]:
                raise BadInputError(
                    f"the model-local function '{below[1]}' calls itself",
                    hint="ONNX has no recursion; export the model again",
                )
    return order


class _Graph:
    """The nodes of the main graph, of a body or of a function, by the values they touch."""

    def __init__(self, owner: FunctionKey | None, nodes: Iterable[onnx.NodeProto]) -> None:
        self.owner = owner
        self.nodes = list(nodes)
        self.touching: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in {*node.input, *node.output} - {""}:
                self.touching[name].append(node)


def concerned(model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto]) -> set[FunctionKey]:
    """The functions that a BatchNorm's map stands in or may come to, and those that call them."""
    graphs = list(_graphs(None, model.graph.node))
    tops = {}
    for key, function in functions.items():
        own = list(_graphs(key, function.node))
        tops[key] = own[0]
        graphs += own
    sites: defaultdict[FunctionKey, list[tuple[_Graph, onnx.NodeProto]]] = defaultdict(list)
    waiting: list[tuple[_Graph, str]] = []
    # A function under the name of one of ONNX's own operators would be taken for it.
    found: set[FunctionKey | None] = {key for key in functions if key[0] == "" and passes_maps(key[1])}
    for graph in graphs:
        for node in graph.nodes:
            if called(node) in functions:
                sites[called(node)].append((graph, node))
            elif called(node) == ("", "BatchNormalization", ""):
                waiting += [(graph, name) for name in (*node.input[:1], *node.output[:1])]
                found.add(graph.owner)
    seen: set[tuple[int, str]] = set()
    while waiting:
        graph, name = waiting.pop()
        if not name or (id(graph), name) in seen:
            continue
        seen.add((id(graph), name))
        for node in graph.touching[name]:
            key = called(node)
            if key in functions:
                waiting += [(tops[key], formal) for formal in _opposite(node, functions[key], name)]
            elif key[0] == "" and passes_maps(key[1]):
                found.add(graph.owner)
                if key[1] not in LAYERS:
                    waiting += [(graph, other) for other in (*node.input, *node.output)]
        if graph.owner is not None and graph is tops[graph.owner]:
            for site, node in sites[graph.owner]:
                waiting += [(site, actual) for actual in _opposite(functions[graph.owner], node, name)]
    return _with_callers(found, sites)


def _opposite(
    here: onnx.NodeProto | onnx.FunctionProto, there: onnx.NodeProto | onnx.FunctionProto, name: str
) -> Iterator[str]:
    """What ``name`` is called on the other side of a call."""
    for own, other in ((here.input, there.input), (here.output, there.output)):
        yield from (b for a, b in zip(own, other, strict=False) if a == name)


def _graphs(owner: FunctionKey | None, nodes: Iterable[onnx.NodeProto]) -> Iterator[_Graph]:
    waiting = [_Graph(owner, nodes)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [_Graph(owner, body.node) for node in graph.nodes for body in bodies_of(node)]


def _with_callers(
    found: Iterable[FunctionKey | None], sites: dict[FunctionKey, list[tuple[_Graph, onnx.NodeProto]]]
) -> set[FunctionKey]:
    waiting = [key for key in found if key is not None]
    result: set[FunctionKey] = set()
    while waiting:
        key = waiting.pop()
        if key not in result:
            result.add(key)
            waiting += [graph.owner for graph, _ in sites.get(key, ()) if graph.owner is not None]
    return result
