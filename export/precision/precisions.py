"""The precisions by name. A new one is a row here and, where it computes something new, a file with its conversion.

Whoever offers or checks a precision reads this table: the command line, the Python interface, conversions,
engines, benchmarks, tolerances. It imports no framework.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from convbn.common.text import did_you_mean
from convbn.errors import UsageError

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration
    from convbn.export.precision.options import PrecisionOptions

    Conversion: TypeAlias = Callable[
        [onnx.ModelProto, "Calibration | None", "PrecisionOptions"], tuple[onnx.ModelProto, dict[str, Any]]
    ]

__all__ = ["AS_IS", "PRECISIONS", "Contents", "Precision", "precision_named", "precision_names"]

AS_IS = "as-is"
"""Not a precision: the model in the one that it carries."""


@dataclass(frozen=True)
class Contents:
    """What tells the precision of a model.

    Attributes:
        types: NumPy's names of the number types among its inputs, outputs, weights and casts.
        quantised: whether it quantises.
        computes: names of the number types that its convolutions and matrix products run in, or where it has none,
            its other operators; a Cast, an input or a stored weight in another type is none of them.
    """

    types: frozenset[str]
    quantised: bool
    computes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Precision:
    """What models can compute in, and how one comes to it.

    Attributes:
        name: as users write it.
        convert: from a folded float32 model, which is left as it is, to one in this precision and what goes into
            the record (:class:`convbn.export.precision.convert.Converted`).
        carried: whether a model with these contents computes in it already.
        dtype: the float type that a PyTorch module is cast to; None where casting does not get there.
        calibration: whether the conversion needs inputs like those the network will meet (``required``), takes one
            random input where it is given none (``random``), makes use of what it is given (``optional``), or
            has no use for any.
        options: names of the :class:`PrecisionOptions` that mean something for it.
        bound: ‖a − b‖ / ‖a‖ up to which its outputs count as those of the original; None for √ε of ``dtype``,
            largest value against largest value.
        bound_source: where `bound` comes from, a few words.
        prepare: from a folded float32 model to one that computes the same and suits `convert` better.
    """

    name: str
    convert: Conversion
    carried: Callable[[Contents], bool]
    dtype: str | None = None
    calibration: Literal["none", "optional", "random", "required"] = "none"
    options: frozenset[str] = frozenset()
    bound: float | None = None
    bound_source: str = ""
    prepare: Conversion | None = None


def _half(dtype: str) -> Conversion:
    def convert(
        model: onnx.ModelProto, calibration: Calibration | None, options: PrecisionOptions
    ) -> tuple[onnx.ModelProto, dict[str, Any]]:
        from convbn.export.precision.half import cast_to_half

        return cast_to_half(model, dtype, calibration, options)

    return convert


def _int8(
    model: onnx.ModelProto, calibration: Calibration | None, options: PrecisionOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    from convbn.export.precision.int8.convert import quantised_to_int8

    return quantised_to_int8(model, calibration, options)


def _equalised(
    model: onnx.ModelProto, calibration: Calibration | None, options: PrecisionOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    from convbn.export.precision.int8.convert import made_ready

    return made_ready(model, calibration, options)


def _nothing(
    model: onnx.ModelProto, calibration: Calibration | None, options: PrecisionOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    return model, {}


_OF_HALF = frozenset({"keep_io_types", "keep_fp32"})
PRECISIONS: dict[str, Precision] = {
    row.name: row
    for row in (
        Precision("fp32", _nothing, lambda held: False, dtype="float32"),
        Precision(
            "fp16",
            _half("float16"),
            lambda held: held.computes == {"float16"} and not held.quantised,
            dtype="float16",
            calibration="random",
            options=_OF_HALF,
        ),
        Precision(
            "bf16",
            _half("bfloat16"),
            lambda held: held.computes == {"bfloat16"} and not held.quantised,
            dtype="bfloat16",
            calibration="optional",
            options=_OF_HALF,
        ),
        Precision(
            "int8",
            _int8,
            lambda held: held.quantised,
            calibration="required",
            options=frozenset(
                {
                    "method",
                    "percentile",
                    "quantise",
                    "rest",
                    "keep_fp32",
                    "equalise",
                    "correct_biases",
                    "sensitivity",
                }
            ),
            # A signal-to-noise ratio of 12 dB, a cosine of 0.97. None follows from the type, the noise grows with
            # depth. Of 76 folded networks of 65 families with random weights (tools/coverage_report) the worst was
            # at 0.13; a lost scale or mixed-up channels give about 1.
            bound=0.25,
            bound_source="12 dB between signal and noise",
            prepare=_equalised,
        ),
    )
}
"""In the order in which they are offered. A model that carries none of them is in fp32."""


def precision_names() -> tuple[str, ...]:
    """What a user may ask for."""
    return (AS_IS, *PRECISIONS)


def precision_named(name: str) -> Precision | None:
    """The precision of that name; None for ``as-is``.

    Raises:
        UsageError: there is none.
    """
    names = precision_names()
    if name not in names:
        hint = did_you_mean(name, names) or f"choose {' or '.join(names)}"
        raise UsageError(f"there is no precision {name!r}", hint=hint)
    return PRECISIONS.get(name)
