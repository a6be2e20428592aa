"""A float32 model in another precision: quantised or cast, after it was folded and before an engine is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbn.export.precision.carried import contents_of, precision_of, refuse_unfolded_quantisation
from convbn.export.precision.errors import PrecisionError
from convbn.export.precision.options import PrecisionOptions
from convbn.export.precision.precisions import precision_named

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration

__all__ = ["Converted", "convert"]


@dataclass(frozen=True)
class Converted:
    """A model and how it came to its precision.

    Attributes:
        model: the one that was given, where there was nothing to do.
        record: JSON-ready: what was asked for, what the model carried, the method, nodes kept in float32 with
            their reasons, ranges, and what is known of the calibration data.
        changed: whether the model is another one.
        before: the float32 model whose values have the names of the converted one's.
    """

    model: onnx.ModelProto
    record: Mapping[str, Any]
    changed: bool
    before: onnx.ModelProto


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
        precision: ``as-is``, or one of :data:`convbn.export.precision.precisions.PRECISIONS`.
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
    wanted = precision_named(precision)
    if wanted is not None and wanted.name == "int8":
        refuse_unfolded_quantisation(model)
    held = contents_of(model)
    carried = precision_of(held)
    record: dict[str, Any] = {"precision": precision, "carried": carried, "method": "none", "note": None}
    if wanted is None or precision == carried:
        if carried != "fp32":
            record["note"] = f"the model carries {carried} already and was left as it is"
        return Converted(model, record, False, model)
    if carried != "fp32":
        raise PrecisionError(
            f"precision {precision} was asked for, but the model carries {carried}",
            hint="use precision as-is, or start from the float32 model",
        )
    beside = sorted(held.types & {"float16", "bfloat16"})
    if beside:
        record["note"] = (
            f"the model held {' and '.join(beside)} beside {' and '.join(sorted(held.computes))}, which it computed in"
        )
    options = options or PrecisionOptions()
    if wanted.prepare is not None:
        model, prepared = wanted.prepare(model, calibration, options)
        record |= prepared
    result, facts = wanted.convert(model, calibration, options)
    return Converted(result, record | facts, True, model)
