"""Exported programs without operators that write to what they read.

``torch.export`` keeps in-place operators as the model has them. An in-place operator gives what its functional
form gives, and whoever reads its operand later reads that result; so it can be exchanged unless somebody
looks at the same memory through another view. What cannot be exchanged so is left to PyTorch's own
``run_decompositions({})``, which traces the program anew.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.schema import (
    operator_name,
    overload,
    passes_through,
    schema_of,
    shown_by,
    view_unsaid,
    written_by,
)
from convbn.fuse.frontends.torch.graph_view.aliasing import Memory

if TYPE_CHECKING:
    import torch.fx

__all__ = ["functional_graph", "hides_views", "writers"]


def writers(graph: torch.fx.Graph, state: set[torch.fx.Node]) -> list[torch.fx.Node]:
    """The nodes that write to a tensor that is not the program's own state."""
    return [node for node in graph.nodes if any(w not in state for w in written_by(node))]


def hides_views(graph: torch.fx.Graph, state: set[torch.fx.Node]) -> bool:
    """Whether memory that is written is shown by what is said to be new, which ``run_decompositions`` copies."""
    memory = Memory(graph, shown_by)
    written = {memory.base(tensor) for node in writers(graph, state) for tensor in written_by(node)}
    return any(view_unsaid(node) and memory.base(node) in written for node in graph.nodes)


def functional_graph(module: torch.fx.GraphModule, state: set[str]) -> torch.fx.GraphModule | None:
    """A copy of a graph with the in-place operators exchanged; None where one cannot be.

    Args:
        module: it is not changed.
        state: names of the placeholders that stand for the program's own tensors.
    """
    copied = copy.deepcopy(module)
    for original, node in zip(module.graph.nodes, copied.graph.nodes, strict=True):
        node.name = original.name  # a copy renames what is called like a builtin
    graph = copied.graph
    own = {node for node in graph.nodes if node.op == "placeholder" and node.name in state}
    memory = Memory(graph, shown_by)
    order = {node: place for place, node in enumerate(graph.nodes)}
    stale: set[torch.fx.Node] = set()  # of which a part was written to
    for node in writers(graph, own):
        target = _functional(node)
        written = list(written_by(node))
        if target is None or len(written) != 1 or memory.base(written[0]).op == "placeholder":
            return None
        operand = written[0]
        same = _same_tensor(operand)
        whole = shown_by(operand)
        scatter = _scatter(operand)
        others = [other for other in memory.others_read_after(operand, node) if other not in same]
        if any(other is not whole or scatter is None for other in others) or whole in stale:
            return None
        later = [n for n in same if n is not node and order[n] < order[node]]
        behind = {other for other, place in order.items() if place > order[node]}
        node.target = target
        for other in later:
            other.replace_all_uses_with(node, delete_user_cb=behind.__contains__)
        if others and whole is not None and scatter is not None:
            with graph.inserting_after(node):
                new = graph.call_function(scatter, (whole, node, *operand.args[1:]))
            new.meta = {**node.meta, "val": whole.meta.get("val")}
            memory.add(new, whole, node)
            stale.add(whole)
            whole.replace_all_uses_with(new, delete_user_cb=behind.__contains__)
    return copied


def _scatter(part: torch.fx.Node) -> Any:
    """What puts a part back into the tensor that it is a view of; None where it is no such view."""
    import torch

    aten = torch.ops.aten
    backs: dict[Any, Any] = {
        aten.select.int: aten.select_scatter.default,
        aten.slice.Tensor: aten.slice_scatter.default,
    }
    return None if part.kwargs else backs.get(part.target)


def _same_tensor(node: torch.fx.Node) -> set[torch.fx.Node]:
    """A node, the nodes that it hands on as they are, and those that hand it on."""
    found = {node}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        source = shown_by(current)
        around = [user for user in current.users if shown_by(user) is current]
        for other, by in [(user, user) for user in around] + ([] if source is None else [(source, current)]):
            if other not in found and _whole(by):
                found.add(other)
                waiting.append(other)
    return found


def _whole(node: torch.fx.Node) -> bool:
    """Whether a node that shows another one's memory shows all of it, as it is."""
    schema = schema_of(node)
    if schema is None:
        return False
    in_place = schema.is_mutable and schema.name.endswith("_")
    return in_place or passes_through(node) is not None


def _functional(node: torch.fx.Node) -> Any:
    """The operator that gives the same without writing; None where there is none with the same arguments."""
    import torch

    name = operator_name(node)
    if not name.startswith("aten::") or not name.endswith("_") or name.endswith("__"):
        return None
    types = {getattr(read.meta.get("val"), "dtype", None) for read in node.all_input_nodes}
    if len(types) > 1 and name != "aten::copy_":
        return None  # in place the type stays, which a result of its own may not have
    packet = getattr(torch.ops.aten, name.removeprefix("aten::").removesuffix("_"), None)
    if packet is None or overload(node) not in packet.overloads():
        return None
    found = getattr(packet, overload(node))
    wanted = [(a.name, str(a.type)) for a in schema_of(node).arguments]
    same = [(a.name, str(a.type)) for a in found._schema.arguments] == wanted
    return found if same and not found._schema.is_mutable and len(found._schema.returns) == 1 else None
