"""int8: the inputs and weights of convolutions and matrix products quantised, the rest in float32 or float16."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convbn.errors import UsageError
from convbn.export.precision.graphs import prepared
from convbn.export.precision.half import cast_in_place, out_of_float16, ready_for
from convbn.export.precision.int8.activations.histogram import thresholds
from convbn.export.precision.int8.bias_correction import correct_biases
from convbn.export.precision.int8.equalising import equalised
from convbn.export.precision.int8.quantising import (
    activations_of,
    chosen_nodes,
    left_in_float32,
    quantise,
    through_quantisation,
)
from convbn.export.precision.int8.sensitivity import layer_losses
from convbn.export.precision.options import ENDS

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration
    from convbn.export.precision.options import PrecisionOptions

__all__ = ["made_ready", "quantised_to_int8"]

#: From the first opset on QuantizeLinear takes a scale a channel, from the second on its scales may be float16.
_OPSETS = {"fp32": 13, "fp16": 19}


def made_ready(
    model: onnx.ModelProto, calibration: Calibration | None, options: PrecisionOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The float32 model that is quantised, equalised unless the options say otherwise, and what goes into the record.

    Raises:
        UsageError: there is no calibration data, or a node that is to stay in float32 does not exist.
        PrecisionError: there is nothing to quantise.
        CalibrationError: onnxruntime cannot run the model on this data.
    """
    named = {node.name for node in model.graph.node}
    nodes = replace(options, keep_fp32=tuple(n for n in options.keep_fp32 if n not in ENDS or n in named))
    if calibration is None:
        hint = "give --calibration PATH with inputs like those the network will meet"
        raise UsageError("precision int8 needs calibration data", hint=hint)
    ready = ready_for(model, "int8", _OPSETS[options.rest], nodes)
    chosen_nodes(ready, options, left_in_float32(ready, options))
    if not options.equalise:
        return ready, {"equalised": None}
    ready, moved = equalised(ready, calibration)
    return ready, {"equalised": moved}


def quantised_to_int8(
    model: onnx.ModelProto, calibration: Calibration | None, options: PrecisionOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Quantise a float32 model.

    Args:
        model: see :func:`made_ready`; left as it is.
        calibration: inputs that the ranges follow from.
        options: operators, method, and what the rest computes in.

    Returns:
        The model, and what goes into the record.

    Raises:
        CalibrationError: onnxruntime cannot run the model on this data.
    """
    if calibration is None:
        raise UsageError("precision int8 needs calibration data")
    kept = left_in_float32(model, options)
    reads = activations_of(model, chosen_nodes(model, options, kept))
    tensors = list(dict.fromkeys(name for names in reads.values() for name in names))
    ends = thresholds(model, tensors, calibration, method=options.method, percentile=options.percentile)
    made = quantise(model, reads.keys(), reads, ends)
    result, corrected = made.model, list[str]()
    if options.correct_biases:
        result, corrected = correct_biases(made, model, calibration)
    record: dict[str, Any] = {
        "method": options.method if options.method != "percentile" else f"percentile {options.percentile:g}",
        "rest": options.rest,
        "quantised": made.nodes,
        "ranges": ends,
        "corrected_biases": corrected,
        "calibration": calibration.summary(),
        "kept": [node.to_dict() for node in kept],
    }
    if options.sensitivity:
        record["sensitivity"] = [loss.to_dict() for loss in layer_losses(model, ends, calibration, options)]
    if options.rest == "fp16":
        beyond, record["activations"] = out_of_float16(model, calibration)
        result = prepared(result)
        # What was not quantised may be float16 now, and is then no longer among those kept.
        record |= cast_in_place(
            result, "float16", through_quantisation(result, made.stands_for, beyond), options
        )
    return result, record
