"""A folded model in another precision, with the proof that it still computes the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.errors import CheckFailedError
from convbn.export.loading.source_model import SourceModel

if TYPE_CHECKING:
    import onnx

    from convbn.bench.equivalence.compare import Equality
    from convbn.export.precision.convert import Converted
    from convbn.export.precision.int8.images import Preprocess
    from convbn.export.precision.int8.samples import Calibration
    from convbn.export.precision.options import PrecisionOptions

__all__ = ["Conversion", "converted"]

_VERIFIED_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Conversion:
    """What precision is wanted, from which data, and how exact the result must be.

    Attributes:
        precision: ``as-is``, ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        options: how to reach it.
        calibration: see :func:`convbn.export.precision.int8.calibration.calibration_from`.
        preprocess: of calibration images.
        limit: use at most so many calibration samples.
        verify: compare the outputs with the original's.
        tolerance: in place of the precision's own.
        seed: of random inputs.
    """

    precision: str
    options: PrecisionOptions | None = None
    calibration: Calibration | Iterable[Any] | str | Path | None = None
    preprocess: Preprocess | None = None
    limit: int | None = None
    verify: bool = True
    tolerance: float | None = None
    seed: int = 0


def converted(model: onnx.ModelProto, wanted: Conversion, original: SourceModel | None = None) -> Converted:
    """Convert a model and compare it with the original.

    fp16 without calibration data looks for activations out of range on one random input. The record says so.

    Args:
        model: folded; left as it is.
        wanted: the precision.
        original: what to compare with; the model before conversion without.

    Returns:
        The model and its record, in which ``verify`` is the outcome of the comparison.

    Raises:
        CheckFailedError: the outputs differ by more than the tolerance, or prove nothing.
        ConvBNError: see :func:`convbn.export.precision.convert.convert`.
    """
    from convbn.bench.cases.forms import random_calibration
    from convbn.export.precision.convert import convert
    from convbn.export.precision.int8.calibration import calibration_from
    from convbn.export.precision.precisions import precision_named

    original = original or SourceModel(model)
    given = None
    if wanted.calibration is not None:
        given = calibration_from(wanted.calibration, model, preprocess=wanted.preprocess, limit=wanted.limit)
    data = given
    row = precision_named(wanted.precision)
    if data is None and row is not None and row.calibration == "random":
        origin = f"random input, seed {wanted.seed}"
        data = random_calibration(model, original, origin, seed=wanted.seed, samples=1)
    result = convert(model, wanted.precision, calibration=data, options=wanted.options)
    if not result.changed:
        return result
    outcome: dict[str, Any] = {"status": "not run", "reason": "the options say so"}
    if wanted.verify:
        answer = _compared(result.model, wanted, original, given)
        if not answer.equal:
            raise _refusal(answer, model, result, wanted, original, given, data)
        outcome = answer.to_dict()
    return replace(result, record={**result.record, "verify": outcome})


def _compared(
    candidate: onnx.ModelProto,
    wanted: Conversion,
    original: SourceModel,
    calibration: Calibration | None,
) -> Equality:
    from convbn.bench.equivalence.compare import compare
    from convbn.bench.equivalence.tolerance import tolerance_of

    inputs = None if calibration is None else list(calibration.limited(_VERIFIED_SAMPLES).samples())
    return compare(
        original.runnable,
        candidate,
        inputs=inputs,
        shapes=original.input_shapes,
        seed=wanted.seed,
        example_inputs=original.example_inputs,
        tolerance=tolerance_of(wanted.precision, wanted.tolerance),
    )


def _refusal(
    answer: Equality,
    model: onnx.ModelProto,
    result: Converted,
    wanted: Conversion,
    original: SourceModel,
    given: Calibration | None,
    data: Calibration | None,
) -> CheckFailedError:
    """Why a converted model is not written, with the nodes that are to blame and what would mend it."""
    from convbn.bench.cases.forms import random_calibration
    from convbn.bench.equivalence.mending import mended
    from convbn.export.precision.convert import convert
    from convbn.export.precision.errors import PrecisionError
    from convbn.export.precision.options import PrecisionOptions

    options = wanted.options or PrecisionOptions()
    looked = data or random_calibration(model, original, "random input", seed=wanted.seed, samples=1)

    def passes(keep: tuple[str, ...]) -> bool:
        try:
            other = convert(
                model, wanted.precision, calibration=data, options=replace(options, keep_fp32=keep)
            )
        except PrecisionError:  # nothing is left that could compute in it
            return False
        return _compared(other.model, wanted, original, given).equal

    different = answer.status == "different"
    found = mended(model, result, next(looked.samples()), options, passes if different else None)
    judged = "is too far from the original" if different else "was not shown to be close"
    return CheckFailedError(
        f"the {wanted.precision} model {judged}: {answer.reason}{found.blame}",
        source=original.path,
        hint=f"nothing was written; {found.way}",
    )
