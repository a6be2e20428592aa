"""onnx-graphsurgeon graphs, which are folded as the models that they export to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from convbn.common.text import first_line
from convbn.errors import BadInputError
from convbn.fuse.frontends.frontend import Applied, Capture
from convbn.fuse.frontends.onnx.capture import capture_model
from convbn.fuse.view.edits import Edit

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

__all__ = ["as_model", "capture_graph"]


def capture_graph(graph: gs.Graph) -> Capture:
    """The dataflow of an onnx-graphsurgeon graph, which is left as it is.

    Raises:
        BadInputError: it cannot be exported, or the exported graph cannot be read.
    """
    captured = capture_model(as_model(graph), owned=True, inline=False)

    def apply(edits: Sequence[Edit]) -> Applied:
        import onnx_graphsurgeon as gs

        applied = captured.apply(edits)
        with _quiet():
            return replace(applied, model=gs.import_onnx(applied.model))

    return replace(captured, apply=apply)


def as_model(graph: gs.Graph) -> onnx.ModelProto:
    """The model that a graph exports to; the graph is left as it is."""
    import onnx_graphsurgeon as gs

    with _quiet():
        try:
            copy = graph.copy()
            # Its copy leaves these out, and shares the list that an export adds to.
            copy.producer_name, copy.producer_version = graph.producer_name, graph.producer_version
            copy.import_domains = graph.import_domains and list(graph.import_domains)
            model: onnx.ModelProto = gs.export_onnx(copy, do_type_check=False)
            return model
        except Exception as error:  # it raises whatever its helpers do on a graph that is no model
            told = first_line(error)
            raise BadInputError(f"the graph cannot be exported: {told}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps graphsurgeon's log lines off the user's terminal while it works."""
    from onnx_graphsurgeon.logger import G_LOGGER

    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        yield
    finally:
        G_LOGGER.severity = severity
