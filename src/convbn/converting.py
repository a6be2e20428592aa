"""A folded model in another precision, with the proof that it still computes the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.errors import CheckFailedError
from convbn.export.loading.source_model import SourceModel

if TYPE_CHECKING:
    import onnx

    from convbn.bench.equivalence.compare import Equality
    from convbn.bench.equivalence.mending import Mending
    from convbn.common.progress import Progress
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


def converted(
    model: onnx.ModelProto,
    wanted: Conversion,
    original: SourceModel | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert a model and compare it with the original.

    fp16 without calibration data looks for activations out of range on one random input. The record says so.

    Args:
        model: folded; left as it is.
        wanted: the precision.
        original: what to compare with, and the inputs for it where there is no calibration data; the model before
            conversion without.
        progress: is told a phase, the steps that are done, and the steps in all.

    Returns:
        The model and its record, in which ``verify`` is the outcome of the comparison.

    Raises:
        CheckFailedError: the outputs differ by more than the tolerance, or prove nothing.
        ConvBNError: see :func:`convbn.export.precision.convert.convert`.
    """
    from convbn.bench.cases.forms import random_calibration
    from convbn.export.precision.convert import convert
    from convbn.export.precision.int8.calibration import calibration_from
    from convbn.export.precision.options import AUTO, PrecisionOptions
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
    options = wanted.options or PrecisionOptions()
    auto = AUTO in options.keep_fp32
    options = replace(options, keep_fp32=tuple(name for name in options.keep_fp32 if name != AUTO))
    result = convert(model, wanted.precision, calibration=data, options=options)
    if not result.changed:
        return result
    if not wanted.verify:
        return _noted(result, verify={"status": "not run", "reason": "the options say so"})
    judge = _Judge(wanted, original, given, auto, progress)
    answer = judge(result)
    if answer.objection is not None:
        looked = data or random_calibration(model, original, "random input", seed=wanted.seed, samples=1)
        different = answer.equality.status != "inconclusive"
        mending, result = _mended(result, judge, options, looked, data, different=different)
        if not auto or mending.keep is None:
            raise _refusal(wanted, original, answer, mending)
        kept = replace(options, keep_fp32=mending.keep, equalise=False)
        facts = {key: result.record[key] for key in ("equalised", "sensitivity") if key in result.record}
        again = convert(result.before, wanted.precision, calibration=data, options=kept)
        result = _noted(again, carried=result.record["carried"], note=result.record["note"], **facts)
        answer = judge(result)
    return _noted(result, verify=answer.equality.to_dict(), **answer.record)


def _noted(result: Converted, **facts: Any) -> Converted:
    return replace(result, record={**result.record, **facts})


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a comparison found, why the model must not be written as it is, and what goes into the record."""

    equality: Equality
    objection: str | None
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Judge:
    """Compares a converted model with the original: on a few inputs value by value, on all of them as a whole."""

    wanted: Conversion
    original: SourceModel
    given: Calibration | None
    auto: bool
    progress: Progress | None

    def __call__(self, result: Converted) -> _Answer:
        """The answer for one model."""
        from convbn.bench.equivalence import similarity
        from convbn.bench.equivalence.tolerance import tolerance_of

        equality = self._compared(result.model)
        if not equality.equal:
            told = (
                "is too far from the original"
                if equality.status == "different"
                else "was not shown to be close"
            )
            return _Answer(equality, f"{told}: {equality.reason}", {})
        if self.given is None or result.record.get("quantised") is None:
            return _Answer(equality, None, {})
        outputs = similarity.agreement(result.before, result.model, self.given, self.progress)
        least = (
            similarity.LOUD if self.auto else similarity.REFUSED if self.wanted.tolerance is None else None
        )
        tolerance = tolerance_of(self.wanted.precision, self.wanted.tolerance)
        reason = similarity.objection(outputs, tolerance, least)
        record = {
            "samples": len(self.given),
            "warning": similarity.warning(outputs),
            "outputs": [output.to_dict() for output in outputs],
        }
        objection = None if reason is None else f"is too far from the original: {reason}"
        return _Answer(equality, objection, {"agreement": record})

    def _compared(self, candidate: onnx.ModelProto) -> Equality:
        from convbn.proof import verify

        inputs = self.original.inputs
        if self.given is not None:
            inputs = list(self.given.limited(_VERIFIED_SAMPLES).samples())
        return verify(
            self.original.runnable,
            candidate,
            example_inputs=self.original.example_inputs,
            input_shapes=self.original.input_shapes,
            inputs=inputs,
            seed=self.wanted.seed,
            precision=self.wanted.precision,
            tolerance=self.wanted.tolerance,
            progress=self.progress,
        )


def _mended(
    result: Converted,
    judge: _Judge,
    options: PrecisionOptions,
    looked: Calibration,
    data: Calibration | None,
    *,
    different: bool,
) -> tuple[Mending, Converted]:
    """The nodes to blame, and those that must stay in float32; int8 layers are ranked by what each loses alone."""
    from convbn.bench.equivalence.mending import mended
    from convbn.bench.proof.node_errors import NodeError
    from convbn.export.precision.convert import convert
    from convbn.export.precision.errors import PrecisionError
    from convbn.export.precision.int8.sensitivity import layer_losses

    before, worst = result.before, None
    if "ranges" in result.record:
        losses = layer_losses(before, result.record["ranges"], looked, options, judge.progress)
        worst = tuple(NodeError(loss.node, loss.operator, loss.error) for loss in losses if loss.error > 0)
        result = _noted(result, sensitivity=[loss.to_dict() for loss in losses])
    precision = judge.wanted.precision

    def passes(keep: tuple[str, ...]) -> bool:
        kept = replace(options, keep_fp32=keep, equalise=False)
        try:
            return judge(convert(before, precision, calibration=data, options=kept)).objection is None
        except PrecisionError:  # nothing is left that could compute in it
            return False

    searched = passes if different else None
    return mended(before, result, next(looked.samples()), options, searched, worst), result


def _refusal(
    wanted: Conversion, original: SourceModel, answer: _Answer, mending: Mending
) -> CheckFailedError:
    return CheckFailedError(
        f"the {wanted.precision} model {answer.objection}{mending.blame}",
        source=original.path,
        hint=f"nothing was written; {_beyond_judging(wanted, answer.equality) or mending.way}",
    )


def _beyond_judging(wanted: Conversion, equality: Equality) -> str | None:
    """What to do where the original itself moves too far by one rounding to the precision; None elsewhere."""
    blind = [output for output in equality.outputs if output.noisy]
    error = max((max(o.rel_error, o.worst_channel_error or 0.0) for o in blind), default=math.inf)
    if equality.status != "inconclusive" or not math.isfinite(error):
        return None
    return (
        f"one rounding of its inputs to {wanted.precision} moves the original as far: use a finer precision, or, if "
        f"such outputs will do, --tolerance {1.1 * error:.2g}"
    )
