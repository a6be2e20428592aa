"""A float32 model in another precision: quantised or cast, after it was folded and before an engine is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbn.errors import NotSupportedError, UsageError
from convbn.export.precision.carried import carried_precision, refuse_unfolded_quantisation
from convbn.export.precision.errors import PrecisionError
from convbn.export.precision.options import PRECISIONS, PrecisionOptions

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration

__all__ = ["Converted", "convert"]

_LOW = {"fp16": "float16", "bf16": "bfloat16"}
#: From this opset on convolutions and pools may be bfloat16.
_BF16_OPSET = 22
#: From this opset on QuantizeLinear takes a scale a channel.
_INT8_OPSET = 13
#: From this one on the scales of QuantizeLinear may be float16.
_INT8_FP16_OPSET = 19


@dataclass(frozen=True)
class Converted:
    """A model and how it came to its precision.

    Attributes:
        model: the one that was given, where there was nothing to do.
        record: JSON-ready: what was asked for, what the model carried, the method, nodes kept in float32 with
            their reasons, ranges, and what is known of the calibration data.
        changed: whether the model is another one.
    """

    model: onnx.ModelProto
    record: Mapping[str, Any]
    changed: bool


def convert(
    model: onnx.ModelProto,
    precision: str,
    *,
    calibration: Calibration | None = None,
    options: PrecisionOptions | None = None,
) -> Converted:
    """Bring a folded model into a precision.

    A model that carries the precision already is handed back untouched, and so is any model for ``as-is``.

    Args:
        model: left as it is.
        precision: ``as-is``, ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        calibration: inputs like those the network will meet. int8 needs them; fp16 looks with them for
            activations that float16 cannot hold, and without them only for such weights.
        options: see the class.

    Returns:
        The model and the record of what was done.

    Raises:
        UsageError: there is no such precision, an option is out of place, or a node to keep does not exist.
        PrecisionError: the model carries another precision than float32, or cannot have this one.
        QuantisationOrderError: the model was quantised before its BatchNorms were folded.
        CalibrationError: the calibration data does not fit, or is missing.
    """
    options = options or PrecisionOptions()
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", hint=f"choose {' or '.join(PRECISIONS)}")
    refuse_unfolded_quantisation(model)
    carried = carried_precision(model)
    record: dict[str, Any] = {"precision": precision, "carried": carried, "method": "none", "note": None}
    if precision in ("as-is", carried):
        if carried != "fp32":
            record["note"] = f"the model carries {carried} already and was left as it is"
        return Converted(model, record, False)
    if carried != "fp32":
        raise PrecisionError(
            f"precision {precision} was asked for, but the model carries {carried}",
            hint="use precision as-is, or start from the float32 model",
        )
    if precision == "int8":
        return _int8(model, calibration, options, record)
    return _half(model, _LOW[precision], calibration, options, record)


def _half(
    model: onnx.ModelProto,
    low: str,
    calibration: Calibration | None,
    options: PrecisionOptions,
    record: dict[str, Any],
) -> Converted:
    from convbn.export.precision.graphs import element_types, prepared

    result = prepared(model if low == "float16" else _in_opset(model, _BF16_OPSET, "bf16"))
    _require_nodes(result, options)
    # bfloat16 has float32's range.
    beyond, checked = ({}, None) if low == "bfloat16" else _out_of_range(result, calibration)
    record |= {"method": "cast"} | _cast(result, element_types(result), low, beyond, options)
    record |= {
        "activations": checked,
        "calibration": None if calibration is None or checked is None else calibration.summary(),
    }
    return Converted(result, record, True)


def _int8(
    model: onnx.ModelProto, calibration: Calibration | None, options: PrecisionOptions, record: dict[str, Any]
) -> Converted:
    from convbn.export.precision.graphs import element_types, prepared
    from convbn.export.precision.int8.quantising import (
        activation_ranges,
        left_in_float32,
        quantise,
        quantised_nodes,
        through_quantisation,
    )

    if calibration is None:
        hint = "give --calibration PATH with inputs like those the network will meet"
        raise UsageError("precision int8 needs calibration data", hint=hint)
    half = options.rest == "fp16"
    ready = prepared(_in_opset(model, _INT8_FP16_OPSET if half else _INT8_OPSET, "int8"))
    _require_nodes(ready, options)
    kept = left_in_float32(ready, options)
    result = quantise(ready, calibration, options, kept)
    record |= {
        "method": options.method if options.method != "percentile" else f"percentile {options.percentile:g}",
        "rest": options.rest,
        "quantised": quantised_nodes(result),
        "ranges": activation_ranges(result),
        "calibration": calibration.summary(),
    }
    entries = [node.to_dict() for node in kept]
    if half:
        beyond, record["activations"] = _out_of_range(ready, calibration)
        result = prepared(result)
        beyond = through_quantisation(result, beyond)
        record |= _cast(result, element_types(result), "float16", beyond, options)
        # What was not quantised may be float16 now.
        entries = record["kept"]
    record["kept"] = entries
    return Converted(result, record, True)


def _out_of_range(
    model: onnx.ModelProto, calibration: Calibration | None
) -> tuple[dict[str, str], dict[str, int] | None]:
    from convbn.export.precision.graphs import element_types
    from convbn.export.precision.int8.ranges import activations_out_of_range, weights_out_of_range

    beyond = weights_out_of_range(model)
    if calibration is None:
        return beyond, None
    found, tensors = activations_out_of_range(model, element_types(model), calibration)
    return beyond | found, {"tensors": tensors, "out_of_range": len(found)}


def _cast(
    model: onnx.ModelProto,
    types: Mapping[str, int],
    low: str,
    beyond: Mapping[str, str],
    options: PrecisionOptions,
) -> dict[str, Any]:
    """Cast a prepared model in place; what goes into the record."""
    from convbn.export.precision.casting import cast_graph
    from convbn.export.precision.selection import select

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


def _require_nodes(model: onnx.ModelProto, options: PrecisionOptions) -> None:
    names = {node.name for node in model.graph.node}
    for name in options.keep_fp32:
        if name not in names:
            raise UsageError(
                f"there is no node {name!r} to keep in float32", hint="names are those of the folded model"
            )


def _in_opset(model: onnx.ModelProto, opset: int, precision: str) -> onnx.ModelProto:
    """The model in this opset or a later one."""
    from convbn.export.onnx_io.provenance import in_opset
    from convbn.export.precision.graphs import opset_of

    if opset_of(model) >= opset:
        return model
    try:
        return in_opset(model, opset)
    except NotSupportedError as error:
        raise PrecisionError(
            f"{precision} needs opset {opset}: {error.cause}", hint="export the model with a newer opset"
        ) from error
