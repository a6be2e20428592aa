"""Which tensors of a graph share their memory, and what becomes of them when somebody writes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.fx

__all__ = ["Memory"]


class Memory:
    """The aliases in one graph.

    Args:
        graph: in running order.
        shows: the tensor in whose memory a node's result may lie, None where it lies in its own.
    """

    def __init__(self, graph: torch.fx.Graph, shows: Callable[[torch.fx.Node], torch.fx.Node | None]) -> None:
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._base: dict[torch.fx.Node, torch.fx.Node] = {}
        self._sharing: dict[torch.fx.Node, list[torch.fx.Node]] = {}
        for node in graph.nodes:
            shown = shows(node)
            base = node if shown is None else self._base[shown]
            self._base[node] = base
            self._sharing.setdefault(base, []).append(node)

    def add(self, node: torch.fx.Node, before: torch.fx.Node, writer: torch.fx.Node) -> None:
        """Let a new node stand for what the memory of another one holds once ``writer`` has run."""
        self._order[node] = self._order[writer]
        self._base[node] = self._base[before]
        self.sharing(before).append(node)

    def base(self, node: torch.fx.Node) -> torch.fx.Node:
        """The node whose memory ``node`` shows; itself where it shows its own."""
        return self._base[node]

    def sharing(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """Every node that shows the same memory, in running order."""
        return self._sharing[self._base[node]]

    def read_after(self, node: torch.fx.Node, writer: torch.fx.Node) -> bool:
        """Whether somebody reads ``node`` after ``writer`` has run."""
        return any(self._order[user] > self._order[writer] for user in node.users)

    def others_read_after(self, written: torch.fx.Node, writer: torch.fx.Node) -> Iterator[torch.fx.Node]:
        """The earlier nodes beside ``written`` that show its memory and are read after ``writer``."""
        for node in self.sharing(written):
            other = node is not written and self._order[node] < self._order[writer]
            if other and self.read_after(node, writer):
                yield node
