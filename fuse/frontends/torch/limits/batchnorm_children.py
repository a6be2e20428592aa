"""Which children of a BatchNorm module stay when it goes, proven on the captured graph.

A module may go if its forward normalises its one input, hands the result through children one after
the other (a dropout, an activation) and returns it. Those children then
take its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convbn.fuse.frontends.torch.calls.aten import map_aten
from convbn.fuse.frontends.torch.calls.schema import is_marker, only_metadata, operator_name
from convbn.fuse.frontends.torch.graph_view.build import innermost
from convbn.fuse.frontends.torch.modules.instrument import Instrumented
from convbn.fuse.frontends.torch.modules.layers import is_one_call, plain_forward
from convbn.fuse.frontends.torch.tracing.trace import only_shape
from convbn.fuse.refusal import Reason, Refusal

if TYPE_CHECKING:
    import torch.fx

__all__ = ["BatchNormChildren"]


class BatchNormChildren:
    """Answers for one captured graph.

    Args:
        graph: with markers at the entries and exits of BatchNorms and their children.
        instrumented: the module it was captured from.
    """

    def __init__(self, graph: torch.fx.Graph, instrumented: Instrumented) -> None:
        self._instrumented = instrumented
        self._parts = instrumented.parts
        self._looks_only: set[torch.fx.Node] = set()
        self._casts: set[torch.fx.Node] = set()
        self._own: dict[str, list[torch.fx.Node]] = {}
        for node in graph.nodes:
            reads = node.all_input_nodes
            checks = bool(reads) and all(read in self._looks_only for read in reads)
            if checks or only_metadata(node) or only_shape(node):
                self._looks_only.add(node)
            elif operator_name(node) in _CASTS and map_aten(node) is not None:
                self._casts.add(node)
            elif node.op in ("call_function", "call_method", "call_module"):
                self._own.setdefault(innermost(node), []).append(node)

    def of(self, node: torch.fx.Node) -> tuple[str, ...] | Refusal:
        """Names of the children that stay when the BatchNorm behind ``node`` goes, in calling order."""
        if node.op == "call_module":
            part = self._parts[str(node.target)]
            if plain_forward(part):
                return ()
            what = f"'{node.target}' ({type(part).__name__})"
            return _stays(f"the forward of {what} cannot be looked into without example inputs")
        import torch

        path = innermost(node)
        if type(self._parts[path]).__call__ is not torch.nn.Module.__call__:
            return _stays(f"'{path}' ({type(self._parts[path]).__name__}) has a __call__ of its own")
        own = self._call(self._own[path], node)
        markers = [other for other in own if is_marker(other)]
        if not markers and plain_forward(self._parts[path]):
            return ()
        if not markers:
            return _stays(f"batch_norm is called in the forward of '{path or 'the model'}', which does more")
        if (
            path in self._instrumented.opaque
            or len(markers) != 2
            or self._uncast(node.all_input_nodes[0]) is not markers[0]
            or _form(markers[0]) != _form(markers[1])
        ):
            return _stays(f"'{path}' does more than normalise its one input")
        children = None if {*own} - {*markers, node} else self._chain(path, node, markers[1])
        if children is None:
            return _stays(f"'{path}' does more than normalise and call its children")
        # An Identity shows in no exported graph; wherever it was called, it did nothing.
        idle = (
            name for name, child in self._parts[path].named_children() if type(child) is torch.nn.Identity
        )
        return (*(name for name in idle if name not in children), *children)

    def _uncast(self, node: torch.fx.Node) -> torch.fx.Node:
        """What was given to the casts between float types that a forward of somebody's own puts around a BatchNorm."""
        while node in self._casts:
            node = node.all_input_nodes[0]
        return node

    def _users(self, node: torch.fx.Node) -> Iterator[torch.fx.Node]:
        """Who reads the numbers of a node, or of a cast of it."""
        for user in node.users:
            if user in self._casts and user.all_input_nodes[0] is node:
                yield from self._users(user)
            elif user not in self._looks_only:
                yield user

    @staticmethod
    def _call(own: list[torch.fx.Node], node: torch.fx.Node) -> list[torch.fx.Node]:
        """Of the nodes of a module those of the call that ``node`` is part of: each begins and ends with a marker."""
        markers = [place for place, other in enumerate(own) if is_marker(other)]
        if len(markers) % 2 or not markers:
            return own
        calls = [own[first : last + 1] for first, last in zip(markers[::2], markers[1::2], strict=True)]
        found = next((call for call in calls if node in call), own)
        inside = {other for call in calls for other in call}
        return [*found, *(other for other in own if other not in inside and found is not own)]

    def _chain(self, path: str, node: torch.fx.Node, end: torch.fx.Node) -> tuple[str, ...] | None:
        """The children that hand ``node`` on to ``end``, None where anything else happens to it."""
        names = {id(child): name for name, child in self._parts[path].named_children()}
        kept: list[str] = []
        current = node
        while True:
            users = list(self._users(current))
            if len(users) != 1:
                return None
            if users[0] is end:
                return tuple(kept)
            child = innermost(users[0])
            name = names.get(id(self._parts[child]))
            result = self._result(child, users[0], current)
            if name is None or name in kept or result is None:
                return None
            kept.append(name)
            current = result

    def _result(self, child: str, entry: torch.fx.Node, data: torch.fx.Node) -> torch.fx.Node | None:
        """What a child gives for ``data``, its one input, where ``entry`` is the call of it or its first marker."""
        if entry.op == "call_module":
            return entry if len(entry.args) == 1 and not entry.kwargs else None
        if not is_marker(entry):
            return entry if is_one_call(self._parts[child]) and entry.all_input_nodes == [data] else None
        if child in self._instrumented.opaque:
            return None
        # A child with one tensor in and one out has two markers a call: entries and exits alternate.
        markers = [other for other in self._own[child] if is_marker(other)]
        index = markers.index(entry)
        return None if index % 2 else markers[index + 1]


_CASTS = ("aten::to", "aten::_to_copy", "aten::type_as")
"""Of these the view knows those between float types."""


def _form(node: torch.fx.Node) -> tuple[object, ...]:
    """The type of a tensor and the device that it lies on."""
    value = node.meta.get("val")
    return getattr(value, "dtype", None), getattr(value, "device", None)


def _stays(detail: str) -> Refusal:
    return Refusal(Reason.NOT_A_MODULE, detail)
