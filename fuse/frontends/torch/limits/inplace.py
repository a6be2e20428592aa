"""In-place operators behind a BatchNorm, and what they would overwrite once it is gone.

A BatchNorm gives a fresh tensor. Without it, an in-place ReLU behind it would write into what the BatchNorm read,
perhaps a shortcut that somebody reads later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from convbn.fuse.frontends.torch.graph_view.aliasing import Memory
from convbn.fuse.frontends.torch.graph_view.build import CapturedGraph, innermost
from convbn.fuse.refusal import Reason, Refusal

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["InplaceWrites"]


class InplaceWrites:
    """Answers for one graph.

    Args:
        captured: the graph, in running order.
        norms: the nodes that are BatchNorms, any of which may go.
        as_written: gives a graph that names tensors as the forward does, None where there is none. An
            exported graph does not: there, whoever reads what was written reads the writer's result.
    """

    def __init__(
        self,
        captured: CapturedGraph,
        norms: set[torch.fx.Node],
        as_written: Callable[[], CapturedGraph | None],
    ) -> None:
        self._captured = captured
        self._norms = norms
        self._as_written = as_written
        self._memory_without = Memory(captured.graph, self._shows)
        self._memory_now = Memory(captured.graph, captured.shows)
        self._order = {node: place for place, node in enumerate(captured.graph.nodes)}
        self._writers: dict[torch.fx.Node, list[torch.fx.Node]] = {}
        for node in captured.graph.nodes:
            for written in captured.writes(node):
                self._writers.setdefault(self._memory_without.base(written), []).append(node)

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
            for writer in self._writers.get(self._memory_without.base(norm), ())
            if self._order[writer] > self._order[norm] and innermost(writer) not in inner
        ]
        if not writers or not self._seen_by_others(norm):
            return ()
        out_of_place = []
        for writer in writers:
            targets = {self._memory_now.base(written) for written in self._captured.writes(writer)}
            if norm not in targets:
                # It writes behind another BatchNorm, whose matter it is, or to what this one reads by its own name.
                if not targets <= self._norms and self._read_after(norm, writer, targets):
                    return Refusal(
                        Reason.SEVERAL_READERS,
                        f"'{writer.name}' writes in place into what it reads, and its output is read after that",
                    )
                continue
            path = _path(writer)
            if not path or getattr(parts[path], "inplace", None) is not True:
                return Refusal(
                    Reason.SEVERAL_READERS,
                    f"without it '{writer.name}' would write in place into what the BatchNorm reads, "
                    "which others read as well",
                )
            if not _read_by_its_result(self._as_written(), path):
                return Refusal(
                    Reason.SEVERAL_READERS,
                    f"'{path}' would have to give up working in place, and it is not certain that the forward "
                    "goes on with its result and not with what it was given",
                )
            out_of_place.append(path)
        return tuple(dict.fromkeys(out_of_place))

    def _read_after(self, norm: torch.fx.Node, writer: torch.fx.Node, targets: set[torch.fx.Node]) -> bool:
        """Whether somebody reads after ``writer`` what would only then lie in the memory it writes to."""
        return any(
            self._order[node] >= self._order[norm]
            and self._memory_now.base(node) not in targets
            and self._memory_without.read_after(node, writer)
            for node in self._memory_without.sharing(norm)
        )

    def _shows(self, node: torch.fx.Node) -> torch.fx.Node | None:
        if node in self._norms:
            return next(iter(node.all_input_nodes), None)
        return self._captured.shows(node)

    def _seen_by_others(self, norm: torch.fx.Node) -> bool:
        """Whether anybody but ``norm`` reads the memory of its input, or holds it."""
        current = self._shows(norm)
        while current is not None:
            readers = [user for user in current.users if not self._captured.metadata(user)]
            if len(readers) > 1 or current.op in ("placeholder", "get_attr"):
                return True
            current = self._shows(current)
        return False


def _path(writer: torch.fx.Node) -> str:
    """The module that a node is a call of, or that it stands in."""
    return str(writer.target) if writer.op == "call_module" else innermost(writer)


def _read_by_its_result(captured: CapturedGraph | None, path: str) -> bool:
    """Whether nobody reads what the module at ``path`` has written to but by its result."""
    if captured is None:
        return False
    memory = Memory(captured.graph, captured.shows)
    own = captured.paths.get(path, path)
    places = [
        (node, written)
        for node in captured.graph.nodes
        if captured.paths.get(_path(node), _path(node)) == own
        for written in captured.writes(node)
    ]
    return bool(places) and not any(
        memory.read_after(written, writer) or any(memory.others_read_after(written, writer))
        for writer, written in places
    )
