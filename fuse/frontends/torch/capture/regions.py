"""Regions under ``torch.no_grad()`` or ``torch.autocast`` in an exported graph, written out where they are called.

``torch.export`` keeps such a region as a graph of its own, which a call in the main graph runs. A region under no_grad
computes what its calls compute; what leaves it is detached, so that no gradient flows back into it. Under autocast
calls compute in another type: there, what is written out only shows which call reads what, and is not to be run.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.fx

__all__ = ["has_autocast", "without_regions"]

_NO_GRAD, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"
_PLACES = {_NO_GRAD: 1, _AUTOCAST: 4}
"""Where in the arguments of a call its region stands; what the region reads follows."""


def without_regions(module: torch.fx.GraphModule, *, autocast: bool = False) -> torch.fx.GraphModule:
    """A copy of a graph with its regions written out, or the graph itself if it has none.

    Args:
        module: it is not changed; placeholders and the names of its nodes stay.
        autocast: also those under autocast, for a graph that is only read.
    """
    wanted = (_NO_GRAD, _AUTOCAST) if autocast else (_NO_GRAD,)
    if next(_calls(module.graph, wanted), None) is None:
        return module
    copied = copy.deepcopy(module)
    for original, node in zip(module.graph.nodes, copied.graph.nodes, strict=True):
        node.name = original.name  # a copy renames what is called like a builtin
    while (call := next(_calls(copied.graph, wanted), None)) is not None:
        _write_out(copied, call)
    copied.delete_all_unused_submodules()
    copied.recompile()
    return copied


def has_autocast(module: torch.fx.GraphModule) -> bool:
    """Whether a graph calls a region under autocast."""
    return next(_calls(module.graph, (_AUTOCAST,)), None) is not None


def _calls(graph: torch.fx.Graph, wanted: tuple[str, ...]) -> Iterator[torch.fx.Node]:
    return (n for n in graph.nodes if n.op == "call_function" and _name(n) in wanted)


def _name(node: torch.fx.Node) -> str:
    return str(node.target)


def _write_out(module: torch.fx.GraphModule, call: torch.fx.Node) -> None:
    import torch

    graph, place = module.graph, _PLACES[_name(call)]
    read: Any = call.args
    named: Any = read[place]
    region: Any = getattr(module, named.target)
    given = dict(zip(region.graph.find_nodes(op="placeholder"), read[place + 1 :], strict=True))
    detached = _name(call) == _NO_GRAD and read[0] is False
    with graph.inserting_before(call):
        results: Any = graph.graph_copy(region.graph, given)
        for user in list(call.users):
            if user.target is not operator.getitem:
                raise ValueError(f"{user.name} reads all that a region gives at once")
            index: Any = user.args[1]
            result = results[index]
            if detached and isinstance(result, type(user)):
                result = graph.call_function(torch.ops.aten.detach.default, (result,))
                result.meta.update(user.meta)
            user.replace_all_uses_with(result)
            graph.erase_node(user)
            if detached:
                result.name = user.name  # the signature of the program says it
    graph.erase_node(call)
    if not named.users:
        graph.erase_node(named)
