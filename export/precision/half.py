"""float16 and bfloat16: casts around the nodes that may compute in them, the others left in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbn.errors import NotSupportedError
from convbn.export.onnx_io.provenance import in_opset
from convbn.export.precision.casting import cast_graph
from convbn.export.precision.errors import PrecisionError
from convbn.export.precision.float16.ranges import activations_out_of_range, weights_out_of_range
from convbn.export.precision.float16.underflow import underflowing
from convbn.export.precision.graphs import element_types, opset_of, prepared, refuse_unknown_nodes
from convbn.export.precision.selection import select

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration
    from convbn.export.precision.options import PrecisionOptions

__all__ = ["cast_in_place", "cast_to_half", "out_of_float16", "ready_for"]

#: From this opset on convolutions and pools may be bfloat16; float16 they may be in every one.
_OPSETS = {"float16": 1, "bfloat16": 22}


def cast_to_half(
    model: onnx.ModelProto, low: str, calibration: Calibration | None, options: PrecisionOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Cast a float32 model.

    Args:
        model: left as it is.
        low: ``float16`` or ``bfloat16``.
        calibration: inputs on which activations are looked at, for float16 alone: bfloat16 has float32's range.
        options: which nodes, inputs and outputs stay in float32.

    Returns:
        The model, and what goes into the record.

    Raises:
        PrecisionError: no node can compute in the type, or the model's opset is too old for it.
        UsageError: a node that is to stay in float32 does not exist.
        CalibrationError: onnxruntime cannot run the model on the calibration data.
    """
    result = ready_for(model, "fp16" if low == "float16" else "bf16", _OPSETS[low], options)
    beyond, checked = ({}, None) if low == "bfloat16" else out_of_float16(result, calibration)
    record = {"method": "cast"} | cast_in_place(result, low, beyond, options)
    data = None if calibration is None or checked is None else calibration.summary()
    return result, record | {"activations": checked, "calibration": data}


def out_of_float16(
    model: onnx.ModelProto, calibration: Calibration | None
) -> tuple[dict[str, str], dict[str, int] | None]:
    """Tensors that float16 cannot hold, each with a sentence, and how many activations were looked at."""
    beyond = weights_out_of_range(model) | underflowing(model)
    if calibration is None:
        return beyond, None
    found, tensors = activations_out_of_range(model, element_types(model), calibration)
    return beyond | found, {"tensors": tensors, "out_of_range": len(found)}


def cast_in_place(
    model: onnx.ModelProto, low: str, beyond: Mapping[str, str], options: PrecisionOptions
) -> dict[str, Any]:
    """Cast a prepared model; what goes into the record.

    Raises:
        PrecisionError: no node can compute in the type.
    """
    types = element_types(model)
    selection = select(model, types, low=low, keep=options.keep_fp32, out_of_range=beyond)
    if not any(selection.low_outputs):
        reasons = ", ".join(sorted({kept.reason for kept in selection.kept})) or "it computes with no floats"
        raise PrecisionError(f"no node can compute in {low} ({reasons})", hint="use precision fp32")
    casts = cast_graph(model, types, selection, low=low, keep_io_types=options.keep_io_types)
    return {
        "keep_io_types": options.keep_io_types,
        "cast_nodes": sum(map(bool, selection.low_outputs)),
        "added_casts": casts,
        "kept": [kept.to_dict() for kept in selection.kept],
    }


def ready_for(
    model: onnx.ModelProto, precision: str, opset: int, options: PrecisionOptions
) -> onnx.ModelProto:
    """A prepared copy in an opset or a later one, in which the nodes that are to stay in float32 exist.

    Raises:
        PrecisionError: onnx cannot bring the model into the opset.
        UsageError: there is no such node.
    """
    if opset_of(model) < opset:
        try:
            model = in_opset(model, opset)
        except NotSupportedError as error:
            cause, hint = (
                f"{precision} needs opset {opset}: {error.cause}",
                "export the model with a newer opset",
            )
            raise PrecisionError(cause, hint=hint) from error
    result = prepared(model)
    refuse_unknown_nodes(result, options.keep_fp32)
    return result
