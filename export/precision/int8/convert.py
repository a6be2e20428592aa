"""int8: the inputs and weights of convolutions and matrix products quantised, the rest in float32 or float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convbn.errors import UsageError
from convbn.export.precision.graphs import prepared
from convbn.export.precision.half import cast_in_place, out_of_float16, ready_for
from convbn.export.precision.int8.quantising import (
    activation_ranges,
    left_in_float32,
    quantise,
    quantised_nodes,
    through_quantisation,
)

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration
    from convbn.export.precision.options import PrecisionOptions

__all__ = ["quantised_to_int8"]

#: From the first opset on QuantizeLinear takes a scale a channel, from the second on its scales may be float16.
_OPSETS = {"fp32": 13, "fp16": 19}


def quantised_to_int8(
    model: onnx.ModelProto, calibration: Calibration | None, options: PrecisionOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Quantise a float32 model.

    Args:
        model: left as it is.
        calibration: inputs that the ranges follow from.
        options: operators, method, and what the rest computes in.

    Returns:
        The model, and what goes into the record.

    Raises:
        UsageError: there is no calibration data, or a node that is to stay in float32 does not exist.
        PrecisionError: there is nothing to quantise.
        CalibrationError: onnxruntime cannot calibrate with this data.
    """
    if calibration is None:
        hint = "give --calibration PATH with inputs like those the network will meet"
        raise UsageError("precision int8 needs calibration data", hint=hint)
    ready = ready_for(model, "int8", _OPSETS[options.rest], options)
    kept = left_in_float32(ready, options)
    result = quantise(ready, calibration, options, kept)
    record: dict[str, Any] = {
        "method": options.method if options.method != "percentile" else f"percentile {options.percentile:g}",
        "rest": options.rest,
        "quantised": quantised_nodes(result),
        "ranges": activation_ranges(result),
        "calibration": calibration.summary(),
        "kept": [node.to_dict() for node in kept],
    }
    if options.rest == "fp16":
        beyond, record["activations"] = out_of_float16(ready, calibration)
        result = prepared(result)
        # What was not quantised may be float16 now, and is then no longer among those kept.
        record |= cast_in_place(result, "float16", through_quantisation(result, beyond), options)
    return result, record
