"""The Python API: each function walks a model through the rooms; none of them computes anything itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convbn.errors import CheckFailedError

if TYPE_CHECKING:
    import onnx

    from convbn.bench.equality import Equality
    from convbn.bench.protocol import ProtocolOptions
    from convbn.bench.result import BenchResult
    from convbn.export.engines.build import EngineArtifact
    from convbn.export.shapes import ShapeRange
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report

__all__ = ["FuseResult", "bench", "build_engine", "export_onnx", "fuse", "inspect", "verify"]


@dataclass(frozen=True, slots=True)
class FuseResult:
    """A folded model and the report of the fold; unpacks as ``model, report = result``.

    Attributes:
        model: of the kind that came in; a path gives an ``onnx.ModelProto``.
        report: what was folded where, what stays and why, and whether the outputs are equal.
    """

    model: Any
    report: Report

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.report))


def fuse(
    model: Any,
    example_inputs: Sequence[Any] | Any | None = None,
    *,
    options: FuseOptions | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> FuseResult:
    """Fold every BatchNorm that can be folded exactly: ``W' = W·γ/√(σ²+ε)``, ``b' = (b − μ)·γ/√(σ²+ε) + β``.

    Args:
        model: a ``torch.nn.Module``, a ``torch.export.ExportedProgram``, an ``onnx.ModelProto``, an
            ``onnx_graphsurgeon.Graph`` or the path of an ONNX file. It is left untouched.
        example_inputs: a module's positional inputs, or the only one. They give the shapes that some
            folds must know, and without them a module's result cannot be verified.
        options: rules to use, and whether to verify.
        input_shapes: full shapes by input name, for ONNX models with open dimensions.

    Returns:
        The folded model and its report.

    Raises:
        CheckFailedError: the outputs differ, or the comparison proves nothing.
        BadInputError: the model cannot be read or captured.
        UsageError: the object is no model, or the options make no sense.

    Source: Ioffe and Szegedy 2015; the folding identities are listed in docs/algebra.md.
    """
    from convbn.fuse.fold import fold
    from convbn.fuse.options import FuseOptions

    options = options or FuseOptions()
    examples = _as_tuple(example_inputs)
    origin = _Origin.of(model)
    folding = fold(origin.model, examples, options=options, owned=False)
    report = replace(folding.report, path=origin.path, sha256=origin.sha256)
    if options.verify:
        report = verified(
            report, origin.model, folding.model, example_inputs=examples, input_shapes=input_shapes
        )
    return FuseResult(folding.model, report)


def inspect(
    model: Any,
    example_inputs: Sequence[Any] | Any | None = None,
    *,
    options: FuseOptions | None = None,
) -> Report:
    """What :func:`fuse` would do: its report, with nothing verified and nothing kept.

    Args:
        model: as for :func:`fuse`.
        example_inputs: as for :func:`fuse`.
        options: which rules would be used.
    """
    from convbn.fuse.fold import fold

    origin = _Origin.of(model)
    folding = fold(origin.model, _as_tuple(example_inputs), options=options, owned=origin.path is not None)
    return replace(
        folding.report,
        path=origin.path,
        sha256=origin.sha256,
        verify={"status": "not run", "reason": "inspect changes nothing, so there is nothing to compare"},
    )


def verify(
    reference: Any,
    candidate: Any,
    *,
    example_inputs: Sequence[Any] | Any | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Equality:
    """Run two models on the same inputs and compare their outputs.

    Args:
        reference: an ONNX model or path, graphsurgeon graph, module or exported program.
        candidate: likewise, of the same or another kind.
        example_inputs: positional inputs of a module; their shapes are used, not their values.
        input_shapes: full shapes by input name, for models with open dimensions.
        inputs: arrays by name, one mapping a sample; seeded random ones without.
        seed: of the random inputs.

    Returns:
        The answer; ``bool(answer.equal)`` says whether equality was shown. See
        :func:`convbn.bench.equality.compare` for the bound.
    """
    from convbn.bench.equality import compare

    return compare(
        _runnable(reference),
        _runnable(candidate),
        inputs=inputs,
        shapes=input_shapes,
        seed=seed,
        example_inputs=_as_tuple(example_inputs),
    )


def export_onnx(
    module: Any,
    example_inputs: Sequence[Any] | Any,
    *,
    fold: bool = True,
    options: FuseOptions | None = None,
    opset: int | None = None,
    dynamic_batch: bool = False,
) -> onnx.ModelProto:
    """Export a module or exported program to ONNX, folded or exactly as it is.

    PyTorch's exporter folds BatchNorm on its own unless it is kept from it; here it never does, so
    ``fold=False`` gives a baseline that really holds its BatchNorms.

    Args:
        module: a ``torch.nn.Module`` in eval mode or an ``ExportedProgram``; left untouched.
        example_inputs: its positional inputs, or the only one.
        fold: fold the exported graph and verify it against ``module``.
        options: of the fold.
        opset: version of the default operator set.
        dynamic_batch: leave dimension 0 of every input free.
    """
    from convbn.export.torch_files import export_onnx as export

    examples = _as_tuple(example_inputs) or ()
    model = export(module, examples, opset=opset, dynamic_batch=dynamic_batch)
    if not fold:
        return model
    from convbn.fuse.fold import fold as fold_model
    from convbn.fuse.options import FuseOptions

    options = options or FuseOptions()
    folding = fold_model(model, options=options, owned=True)
    if options.verify:
        verified(folding.report, module, folding.model, example_inputs=examples)
    folded: onnx.ModelProto = folding.model
    return folded


def build_engine(
    model: onnx.ModelProto | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backend: str = "auto",
    precision: str = "as-is",
    tf32: bool = True,
    shapes: Mapping[str | None, ShapeRange] | None = None,
    unfused_model: onnx.ModelProto | str | os.PathLike[str] | None = None,
    fold_summary: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> EngineArtifact:
    """Build a TensorRT engine and its sidecar ``<out>.json``; see :mod:`convbn.export.engines`."""
    from convbn.export.engines.build import build_engine as build

    return build(
        model,
        out,
        backend=backend,
        precision=precision,
        tf32=tf32,
        shapes=shapes,
        unfused_model=unfused_model,
        fold_summary=fold_summary,
        overwrite=overwrite,
        progress=progress,
    )


def bench(
    model: Any,
    *others: Any,
    runtimes: Sequence[str] | None = None,
    example_inputs: Sequence[Any] | Any | None = None,
    options: ProtocolOptions | None = None,
    fuse_options: FuseOptions | None = None,
) -> BenchResult:
    """Measure a model against its folded self, or against others that compute the same.

    Args:
        model: the baseline: an ONNX model or path, a module or an exported program.
        others: what to measure against it; without any, ``model`` is folded for it.
        runtimes: names of :func:`convbn.bench.runtimes.registry.runtime_names`; without any, those that
            can run on this machine's CPU.
        example_inputs: a module's positional inputs, or the only one.
        options: of the measuring protocol.
        fuse_options: of the fold.

    Returns:
        Raw samples, statistics and verdicts; sides whose outputs differ are not timed.
    """
    from convbn.bench.protocol import measure
    from convbn.sides import default_runtimes, folded_side, onnx_wanted, original_side, other_side

    examples = _as_tuple(example_inputs)
    original = original_side(_runnable(model), examples, onnx_wanted=onnx_wanted(runtimes))
    chosen = tuple(runtimes) if runtimes else default_runtimes(original)
    if others:
        sides = [other_side(_runnable(other), i, examples) for i, other in enumerate(others, start=2)]
        return measure((original, *sides), chosen, options=options)
    folded, report = folded_side(original, fuse_options)
    return measure((original, folded), chosen, options=options, fold=report.to_dict())


def verified(
    report: Report,
    reference: Any,
    candidate: Any,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Report:
    """The report with the outcome of a comparison in it.

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
        seed=report.options.seed,
    )
    seconds = replace(report.seconds, verify=time.perf_counter() - start)
    if not answer.equal:
        judged = "the folded model is not equal" if answer.status == "different" else "equality was not shown"
        raise CheckFailedError(
            f"{judged}: {answer.reason}",
            source=report.path,
            hint="nothing was written; verify=False skips the check",
        )
    return replace(report, verify=answer.to_dict(), seconds=seconds)


@dataclass(frozen=True, slots=True)
class _Origin:
    """A model and the file it came from, if it came from one."""

    model: Any
    path: str | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, model: Any) -> _Origin:
        if not isinstance(model, str | os.PathLike):
            return cls(model)
        from convbn.export.onnx_files import read_model

        loaded = read_model(model)
        return cls(loaded.model, os.fspath(model), loaded.sha256)


def _runnable(model: Any) -> Any:
    """A form that the runtimes take: graphsurgeon graphs become ModelProtos."""
    from convbn.fuse.fold import kind_of

    if kind_of(model) != "onnx-graphsurgeon":
        return model
    import onnx_graphsurgeon as gs

    return gs.export_onnx(model.copy(), do_type_check=False)


def _as_tuple(examples: Sequence[Any] | Any | None) -> tuple[Any, ...] | None:
    if examples is None:
        return None
    return tuple(examples) if isinstance(examples, list | tuple) else (examples,)
