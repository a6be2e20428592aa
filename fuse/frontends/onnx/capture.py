"""ONNX models, captured for the planner and edited by its plan."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from convbn.errors import Concern
from convbn.fuse.frontends.frontend import Applied, Capture
from convbn.fuse.frontends.onnx.local_functions.inline import Inlined, inline_functions
from convbn.fuse.frontends.onnx.model.dequantizers import join_dequantizers, part_dequantizers
from convbn.fuse.frontends.onnx.model.freeze import declare_new, overridable
from convbn.fuse.frontends.onnx.model.freeze import freeze as freeze_initializers
from convbn.fuse.frontends.onnx.model.graphs import operators_of
from convbn.fuse.frontends.onnx.model.skeleton import infer_shapes, skeleton, structure_problem
from convbn.fuse.frontends.onnx.model.tensors import Deferred, Read
from convbn.fuse.frontends.onnx.reading.reader import read_view
from convbn.fuse.frontends.onnx.writer import write
from convbn.fuse.view.edits import Edit

if TYPE_CHECKING:
    import onnx

__all__ = ["capture_model"]

_HOW = "read from the ONNX graph: what it shows is what runs"


def capture_model(
    model: onnx.ModelProto,
    *,
    owned: bool = False,
    freeze: bool = False,
    read: Read | None = None,
    inline: bool = True,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Capture:
    """The dataflow of an ONNX model.

    Args:
        model: left as it is, unless ``owned``.
        owned: the model may be edited in place, which saves a copy of its weights.
        freeze: initializers that are inputs too are constants, and no longer inputs.
        read: gives the raw bytes of external tensors. Folded weights are then computed when they are written.
        inline: local functions that a BatchNorm stands in or beside may be written out.
        input_shapes: full shapes by input name; ranks and sizes follow from them that the model does not state.

    Raises:
        BadInputError: the graph cannot be read as one.
    """
    start = time.perf_counter()
    if not owned:
        copy = type(model)()
        copy.CopyFrom(model)
        model = copy
    operators = operators_of(model)
    frozen = freeze_initializers(model) if freeze else []
    inlined = inline_functions(model) if inline else Inlined()
    quantised = operators["DequantizeLinear"] and operators["BatchNormalization"]
    parted = part_dequantizers(model) if quantised else []
    light = skeleton(model)
    # onnxruntime runs many a model that the checker does not pass, so this is told and not refused.
    problem = structure_problem(light)
    told = [] if problem is None else [Concern(f"onnx's checker says of the input: {problem}")]
    infer = None if inlined.explosive else partial(infer_shapes, light, input_shapes)
    reading = read_view(model, overridable=overridable(model), infer=infer, read=read)

    def apply(edits: Sequence[Edit]) -> Applied:
        if not edits:
            join_dequantizers(parted)
            if inlined.undo is not None:
                inlined.undo()
            return Applied(model, operators)
        stored = [tensor.name for tensor in model.graph.initializer]
        deferred = Deferred(wanted=read is not None)
        write(reading, edits, deferred)
        join_dequantizers(parted)
        declare_new(model, stored)
        broken = structure_problem(skeleton(model))
        if broken is not None and problem is None:
            raise RuntimeError(f"the edits made a valid model invalid: {broken}")
        return Applied(model, operators_of(model), deferred.computed)

    seconds = time.perf_counter() - start
    notes = [*frozen, *told, *inlined.notes]
    return Capture(reading.view, operators, apply, reading.unreachable, notes, _HOW, seconds)
