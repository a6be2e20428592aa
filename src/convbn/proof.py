"""The proof that nothing changed: two models on the same inputs, and the report that says how it came out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convbn.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    import onnx

    from convbn.bench.equivalence.compare import Equality
    from convbn.bench.proof.layers import Layers
    from convbn.bench.proof.prove import FoldPlan
    from convbn.common.progress import Progress
    from convbn.fuse.report import Report

__all__ = ["as_tuple", "compare_layers", "plan_of", "require_equal", "runnable", "verified", "verify"]


def verify(
    reference: Any,
    candidate: Any,
    *,
    example_inputs: Sequence[Any] | Any | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Any | None = None,
    seed: int = 0,
    precision: str | None = None,
    tolerance: float | None = None,
    runtime: str | None = None,
    plan: FoldPlan | None = None,
    progress: Progress | None = None,
) -> Equality:
    """Run two models on the same inputs and compare their outputs.

    Args:
        reference: an ONNX model or path, graphsurgeon graph, module or exported program.
        candidate: likewise, of the same or another kind; or an engine, ``convbn.EngineFile(path, trust=True)``.
        example_inputs: positional inputs of a module; their shapes are used, not their values.
        input_shapes: full shapes by input name, for models with open dimensions.
        inputs: what to run them on, in place of random values: samples, one sample, or a path
            (:func:`convbn.bench.models.given.given_inputs`).
        seed: of the random inputs.
        precision: of the candidate, if it is another than the reference's: ``fp32``, ``fp16``, ``bf16`` or
            ``int8``. It decides how far the outputs may be apart (docs/precision.md).
        tolerance: relative error that is allowed instead.
        runtime: run both in this one instead of as they stand on the CPU, such as ``openvino-cpu``.
        plan: of the fold that made the candidate, so that each of its regions is judged by itself.
        progress: is told a phase, the steps that are done, and the steps in all.

    Returns:
        The answer, which is true where equality was shown: ``bool(answer)`` says whether equality was shown. See
        :func:`convbn.bench.equivalence.compare.compare` for the bound.
    """
    from convbn.bench.equivalence.compare import compare
    from convbn.bench.equivalence.tolerance import tolerance_of

    allowed = None
    if precision is not None or tolerance is not None:
        allowed = tolerance_of(precision or "fp32", tolerance)
    a, b = runnable(reference), runnable(candidate)
    return compare(
        a,
        b,
        inputs=_samples(a, b, inputs),
        shapes=input_shapes,
        seed=seed,
        example_inputs=as_tuple(reference, example_inputs),
        tolerance=allowed,
        runtime=runtime,
        plan=plan,
        progress=progress,
    )


def compare_layers(
    reference: Any,
    candidate: Any,
    *,
    example_inputs: Any | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Any | None = None,
    seed: int = 0,
) -> Layers:
    """Where two ONNX models part: every value that stands in both, beside what rounding may do to it.

    Args:
        reference: an ONNX model or path.
        candidate: another, whatever tool made it.
        example_inputs: as for :func:`verify`.
        input_shapes: as for :func:`verify`.
        inputs: as for :func:`verify`; the first sample is used.
        seed: of the random inputs.

    Returns:
        A row a value, and the first from which a difference reaches an output.

    Raises:
        UsageError: one of them is no ONNX model.
        SessionError: one of them cannot be run.
    """
    from convbn.bench.equivalence.noise import moved_by_rounding
    from convbn.bench.models.feeds import model_feeds
    from convbn.bench.models.inputs import is_onnx
    from convbn.bench.proof import layers
    from convbn.bench.proof.graph.whole import Whole

    a, b = runnable(reference), runnable(candidate)
    if not (is_onnx(a) and is_onnx(b)):
        raise UsageError("values are compared one by one in ONNX models", hint="export both with --no-fuse")
    feeds = _samples(a, b, inputs) or model_feeds(
        (a, b), shapes=input_shapes, seed=seed, samples=1, example_inputs=as_tuple(a, example_inputs)
    )
    with Whole(a, "reference") as before, Whole(b, "candidate") as after:
        return layers.compare_layers(before, after, feeds[0], moved_by_rounding(feeds[0]))


def verified(
    report: Report,
    reference: Any,
    candidate: Any,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Any | None = None,
    exported: onnx.ModelProto | None = None,
    progress: Progress | None = None,
) -> Report:
    """The report with the outcome of a comparison in it.

    Args:
        report: of the fold.
        reference: what the folded model is held against.
        candidate: the folded model.
        example_inputs: as for :func:`verify`.
        input_shapes: as for :func:`verify`.
        inputs: as for :func:`verify`.
        exported: the ONNX model that was folded, where the reference is what it was exported from.
        progress: as for :func:`verify`.

    Raises:
        CheckFailedError: the outputs differ, or the comparison proves nothing.
    """
    import time

    if report.kind == "torch.nn.Module" and example_inputs is None and not input_shapes:
        reason = "a module can only be run on example inputs, and none were given"
        return replace(report, verify={"status": "not run", "reason": reason})
    start = time.perf_counter()
    answer = verify(
        reference,
        candidate,
        example_inputs=example_inputs,
        input_shapes=input_shapes,
        inputs=inputs,
        seed=report.options.seed,
        plan=plan_of(report, exported),
        progress=progress,
    )
    seconds = replace(report.seconds, verify=time.perf_counter() - start)
    require_equal(answer, report.path, "nothing was written; verify=False skips the check")
    return replace(report, verify=answer.to_dict(), seconds=seconds)


def _samples(reference: Any, candidate: Any, inputs: Any | None) -> Sequence[Mapping[str, Any]] | None:
    """Samples as arrays by name; an ONNX model of the two knows the names."""
    if inputs is None:
        return None
    from convbn.bench.models.given import given_inputs
    from convbn.bench.models.inputs import is_onnx
    from convbn.export.loading.open import open_source
    from convbn.export.loading.source_model import LoadOptions, SourceModel

    named = next((model for model in (reference, candidate) if is_onnx(model)), reference)
    if isinstance(named, str | os.PathLike):  # its names are wanted, not its weights
        source = open_source(os.fspath(named), LoadOptions(), light=True, hashed=False)
    else:
        source = SourceModel(named)
    return given_inputs(source, inputs).inputs


def require_equal(answer: Equality, path: str | None, hint: str) -> None:
    """Hold the comparison of a fold against what it must show.

    Args:
        answer: of the comparison.
        path: of the original.
        hint: what became of the folded model, and the way out.

    Raises:
        CheckFailedError: the outputs differ, or the comparison proves nothing.
    """
    if not answer.equal:
        judged = "the folded model is not equal" if answer.status == "different" else "equality was not shown"
        raise CheckFailedError(f"{judged}: {answer.reason}", source=path, hint=hint)


def plan_of(report: Report, exported: onnx.ModelProto | None = None) -> FoldPlan | None:
    """What a fold says that it did, for the proof of its regions; None for another framework's model.

    Its names are those of what was folded, and that runs in another form.

    Args:
        report: of the fold.
        exported: see :func:`verified`.
    """
    if not report.kind.startswith(("onnx", "torch.")):
        return None
    from convbn.bench.proof.prove import FoldPlan

    folds = tuple((fold.name, fold.into) for fold in report.folded)
    return FoldPlan(folds, report.moved, report.merges, exported)


def runnable(model: Any) -> Any:
    """A form that the runtimes take: graphsurgeon graphs become ModelProtos."""
    from convbn.fuse.kinds import frontend_of

    frontend = frontend_of(model)
    return model if frontend is None else frontend.runnable(model)


def as_tuple(model: Any, examples: Sequence[Any] | Any | None) -> tuple[Any, ...] | None:
    """Example inputs as users give them: several, the only one, keywords of the model's forward, or none."""
    from convbn.bench.models.arguments import positional

    return positional(model, examples)
