"""ONNX models and onnx-graphsurgeon graphs, captured for the planner and edited by its plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from convbn.errors import BadInputError, Concern
from convbn.fuse.frontends.frontend import Applied, Capture
from convbn.fuse.frontends.onnx.editor import Editor
from convbn.fuse.frontends.onnx.freeze import declare_new, overridable
from convbn.fuse.frontends.onnx.freeze import freeze as freeze_initializers
from convbn.fuse.frontends.onnx.functions import inline_functions
from convbn.fuse.frontends.onnx.outside import Outside, Read
from convbn.fuse.frontends.onnx.reader import Reading, read_view, scopes
from convbn.fuse.frontends.onnx.skeleton import infer_shapes, structure_problem
from convbn.fuse.frontends.onnx.writer import count_nodes, import_model
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.elementwise import Elementwise
from convbn.fuse.view.edits import Edit

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

__all__ = ["capture_graph", "capture_model"]

_HOW = "read from the ONNX graph: what it shows is what runs"


def capture_model(
    model: onnx.ModelProto, *, owned: bool = False, freeze: bool = False, read: Read | None = None
) -> Capture:
    """The dataflow of an ONNX model.

    Args:
        model: left as it is, unless ``owned``.
        owned: the model may be edited in place, which saves a copy of its weights.
        freeze: initializers that are inputs too are constants, and no longer inputs.
        read: gives the raw bytes of external tensors. Folded weights are then computed when they are written.

    Raises:
        BadInputError: the graph cannot be read as one.
    """
    start = time.perf_counter()
    if not owned:
        copy = type(model)()
        copy.CopyFrom(model)
        model = copy
    nodes = count_nodes(model)
    frozen = freeze_initializers(model) if freeze else []
    inlined = inline_functions(model)
    with _Quiet():
        try:
            imported = import_model(model)
        except Exception as error:  # graphsurgeon raises whatever its helpers do on a malformed graph
            raise BadInputError(f"the ONNX graph cannot be read: {_first_line(error)}") from error
    # onnxruntime runs many a model that the checker does not pass, so this is told and not refused.
    problem = structure_problem(model)
    told = [] if problem is None else [Concern(f"onnx's checker says of the input: {problem}")]
    notes = [*told, *inlined.notes]
    fed = overridable(model)
    outside = None if read is None else Outside(read)
    reading = read_view(imported.graph, overridable=fed, outside=outside)
    if _lacks_shapes(reading) and not inlined.explosive:
        reading = read_view(imported.graph, overridable=fed, shapes=infer_shapes(model), outside=outside)

    def apply(edits: Sequence[Edit]) -> Applied:
        if not edits and inlined.undo is not None:
            inlined.undo()
            return Applied(model, nodes)
        editor = Editor(imported.graph, in_place=True, outside=outside)
        with _Quiet():
            editor.apply(edits)
        stored = [tensor.name for tensor in model.graph.initializer]
        imported.write(editor.created, editor.replaced)
        declare_new(model, stored)
        broken = structure_problem(model)
        if broken is not None and problem is None:
            raise RuntimeError(f"the edits made a valid model invalid: {broken}")
        return Applied(model, count_nodes(model), {} if outside is None else outside.computed)

    return Capture(
        reading.view,
        nodes,
        apply,
        reading.unreachable,
        [*frozen, *notes],
        _HOW,
        time.perf_counter() - start,
    )


def capture_graph(graph: gs.Graph) -> Capture:
    """The dataflow of an onnx-graphsurgeon graph, which is left as it is."""
    import onnx_graphsurgeon as gs

    start = time.perf_counter()
    with _Quiet():
        copy = graph.copy()
    reading = read_view(copy)
    if _lacks_shapes(reading):
        with _Quiet():
            exported = gs.export_onnx(graph.copy(), do_type_check=False)
        reading = read_view(copy, shapes=infer_shapes(exported))

    def apply(edits: Sequence[Edit]) -> Applied:
        with _Quiet():
            Editor(copy, in_place=False).apply(edits)
        functions = sum(len(function.nodes) for function in copy.functions)
        return Applied(copy, functions + sum(len(current.nodes) for _, current in scopes(copy)))

    return Capture(
        reading.view, reading.nodes, apply, reading.unreachable, [], _HOW, time.perf_counter() - start
    )


def _lacks_shapes(reading: Reading) -> bool:
    """Whether there is a map to place and some value whose shape the graph does not state."""
    nodes = reading.view.nodes
    return any(isinstance(node.op, BatchNorm | Elementwise) for node in nodes) and any(
        value.shape is None for node in nodes for value in node.outputs
    )


class _Quiet:
    """Keeps graphsurgeon's log lines off the user's terminal while it works."""

    def __enter__(self) -> None:
        from onnx_graphsurgeon.logger import G_LOGGER

        self._severity = G_LOGGER.severity
        G_LOGGER.severity = G_LOGGER.ERROR

    def __exit__(self, *_: object) -> None:
        from onnx_graphsurgeon.logger import G_LOGGER

        G_LOGGER.severity = self._severity


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
