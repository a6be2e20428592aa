"""In-place operators behind a BatchNorm: what they would overwrite once it is gone.

A BatchNorm gives a fresh tensor. Without it, an in-place ReLU behind it would write into what the BatchNorm read,
perhaps a shortcut that somebody reads later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from convbn.fuse.frontends.torch.drawing import Source, innermost
from convbn.fuse.frontends.torch.memory import Memory
from convbn.fuse.refusal import Reason, Refusal

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["Overwriting"]


class Overwriting:
    """Answers for one graph.

    Args:
        graph: in running order.
        source: what is known about it.
        norms: the nodes that are BatchNorms, any of which may go.
    """

    def __init__(self, graph: torch.fx.Graph, source: Source, norms: set[torch.fx.Node]) -> None:
        self._source = source
        self._norms = norms
        self._memory = Memory(graph, self._shows)
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._writers: dict[torch.fx.Node, list[torch.fx.Node]] = {}
        for node in graph.nodes:
            for written in source.writes(node):
                self._writers.setdefault(self._memory.base(written), []).append(node)

    def modules_behind(
        self, norm: torch.fx.Node, parts: Mapping[str, torch.nn.Module], inner: set[str]
    ) -> tuple[str, ...] | Refusal:
        """The modules that must give up working in place when ``norm`` goes.

        Args:
            norm: the BatchNorm.
            parts: every module by its paths.
            inner: paths of the BatchNorm's own children, which give it up anyway.
        """
        writers = [
            writer
            for writer in self._writers.get(self._memory.base(norm), ())
            if self._order[writer] > self._order[norm] and innermost(writer) not in inner
        ]
        if not writers or not self._seen_by_others(norm):
            return ()
        quiet = []
        for writer in writers:
            path = str(writer.target) if writer.op == "call_module" else innermost(writer)
            if not path or getattr(parts[path], "inplace", None) is not True:
                return Refusal(
                    Reason.SEVERAL_READERS,
                    f"without it '{writer.name}' would write in place into what the BatchNorm reads, "
                    "which others read as well",
                )
            quiet.append(path)
        return tuple(dict.fromkeys(quiet))

    def _shows(self, node: torch.fx.Node) -> torch.fx.Node | None:
        if node in self._norms:
            return next(iter(node.all_input_nodes), None)
        return self._source.shows(node)

    def _seen_by_others(self, norm: torch.fx.Node) -> bool:
        """Whether anybody but ``norm`` reads the memory of its input, or holds it."""
        current = self._shows(norm)
        while current is not None:
            readers = [user for user in current.users if not self._source.metadata(user)]
            if len(readers) > 1 or current.op in ("placeholder", "get_attr"):
                return True
            current = self._shows(current)
        return False
