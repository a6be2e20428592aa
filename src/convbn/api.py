"""The public Python API: fuse, inspect, bench, save_fused, load_fused; what computes stands in the rooms behind it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

from convbn.common.public import logger
from convbn.errors import UsageError
from convbn.proof import as_tuple, runnable, verified

if TYPE_CHECKING:
    import torch

    from convbn.bench.cases.study import Grid
    from convbn.bench.measure.options import ProtocolOptions
    from convbn.bench.results.result import BenchResult
    from convbn.common.progress import Progress
    from convbn.export.checkpoints.fused import Architecture
    from convbn.export.loading.source_model import SourceModel
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report

__all__ = ["FuseResult", "bench", "fuse", "inspect", "load_fused", "save_fused"]

M = TypeVar("M")


class FuseResult(NamedTuple, Generic[M]):
    """A folded model and the report of the fold; unpacks as ``model, report = result``.

    Attributes:
        model: of the kind that came in; a path gives an ``onnx.ModelProto``.
        report: what was folded where, what stays and why, and whether the outputs are equal.
    """

    model: M
    report: Report

    def __repr__(self) -> str:
        return f"<FuseResult: {type(self.model).__name__}, {self.report}>"

    def _repr_html_(self) -> str:
        """For a notebook: that of the report."""
        return self.report._repr_html_()


@overload
def fuse(
    model: str | os.PathLike[str],
    example_inputs: Sequence[Any] | Any | None = None,
    *,
    options: FuseOptions | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Any | None = None,
    arch: Architecture | None = None,
    trust: bool = False,
    inplace: bool = False,
    keep_identities: bool = True,
    progress: Progress | None = None,
) -> FuseResult[Any]: ...


@overload
def fuse(
    model: M,
    example_inputs: Sequence[Any] | Any | None = None,
    *,
    options: FuseOptions | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Any | None = None,
    arch: Architecture | None = None,
    trust: bool = False,
    inplace: bool = False,
    keep_identities: bool = True,
    progress: Progress | None = None,
) -> FuseResult[M]: ...


def fuse(
    model: Any,
    example_inputs: Sequence[Any] | Any | None = None,
    *,
    options: FuseOptions | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Any | None = None,
    arch: Architecture | None = None,
    trust: bool = False,
    inplace: bool = False,
    keep_identities: bool = True,
    progress: Progress | None = None,
) -> FuseResult[Any]:
    """Fold every BatchNorm that can be folded exactly: ``W' = W·γ/√(σ²+ε)``, ``b' = (b − μ)·γ/√(σ²+ε) + β``.

    Args:
        model: a ``torch.nn.Module``, a ``torch.export.ExportedProgram``, an ``onnx.ModelProto``, an
            ``onnx_graphsurgeon.Graph``, or the path of an ONNX file or checkpoint. It is left untouched. The
            result of an ONNX path holds all weights, those from other files too; for models that should
            not be held in memory there is :func:`convbn.fuse_file`.
        example_inputs: a module's positional inputs, the only one, or a dict by the names of its forward's
            parameters; tensors in any nest of lists and dicts, and what is no tensor. They give the shapes that some
            folds must know, and without them a module's result cannot be verified.
        options: rules to use, and whether to verify.
        input_shapes: full shapes by input name, for ONNX models with open dimensions.
        inputs: what to verify with, and a module's examples where there are none, as for :func:`verify`.
        arch: the architecture of a checkpoint, as for :func:`load_fused`.
        trust: run the code that a pickle, ``.pt2`` or TorchScript file brings (docs/checkpoints.md).
        inplace: fold the given ``torch.nn.Module`` itself, once the fold of a copy has been verified. Its
            parameters stay the same objects.
        keep_identities: leave an ``nn.Identity`` where a module's BatchNorm was. Without, it is taken out where its
            parent is an ``nn.Sequential``, whose later children then have smaller indices, or does nothing but call
            it; the calls cost eager PyTorch 1 to 3 µs each.
        progress: is told by the proof: a phase, the steps that are done, and the steps in all.

    Returns:
        The folded model and its report.

    Raises:
        CheckFailedError: the outputs differ, or the comparison proves nothing.
        BadInputError: the model cannot be read or captured.
        UsageError: the object is no model, or the options make no sense.

    Warns:
        UserWarning: nothing was folded, since the model is in training mode.

    Source: Ioffe and Szegedy 2015; the folding identities are listed in docs/algebra.md.
    """
    from convbn.bench.models.given import given_inputs
    from convbn.export.loading.open import source_of
    from convbn.export.loading.source_model import LoadOptions
    from convbn.fuse.fold import fold
    from convbn.fuse.kinds import kind_of
    from convbn.fuse.options import FuseOptions

    options = options or FuseOptions()
    if inplace and kind_of(model) != "torch.nn.Module":
        raise UsageError("only a torch module can be folded in place", hint="leave out inplace=True")
    source = source_of(model, LoadOptions(arch=arch, trust=trust))
    examples = as_tuple(source.model, example_inputs)
    if inputs is not None:
        source = given_inputs(source, inputs)
        examples = examples or source.example_inputs
    # A file is compared with as it lies there, so its model need not be kept beside the folded one.
    folding = fold(
        source.model, examples, options=options, owned=source.path is not None, input_shapes=input_shapes
    )
    report = source.named_in(folding.report)
    _warn_of_training_mode(report)
    identities = []
    if not keep_identities and kind_of(folding.model) == "torch.nn.Module":
        from convbn.fuse.frontends.torch.edit.identities import new_identities, take_out
        from convbn.fuse.frontends.torch.modules.copies import checked

        identities = new_identities(checked(source.model), folding.model)
        take_out(folding.model, identities)
    if options.verify:
        report = verified(
            report,
            source.runnable,
            folding.model,
            example_inputs=examples,
            input_shapes=input_shapes,
            inputs=source.inputs,
            progress=progress,
        )
    logger.info("%s", repr(report))
    if inplace:
        from convbn.fuse.frontends.torch.edit.module import adopt
        from convbn.fuse.frontends.torch.modules.copies import checked

        own = checked(model)
        adopt(own, folding.model, materialized=options.materialize)
        if identities:
            take_out(own, identities)
        return FuseResult(model, report)
    return FuseResult(folding.model, report)


def _warn_of_training_mode(report: Report) -> None:
    """Say that a model was folded as it trains: nothing went, which is seldom meant."""
    from convbn.fuse.refusal import Reason

    training = sum(kept.reason is Reason.TRAINING_MODE for kept in report.kept)
    if training and not report.folded and report.kind.startswith("torch."):
        text = (
            f"nothing was folded: {training} of {report.batchnorm.before} BatchNorms are in training mode; "
            "call model.eval() first"
        )
        called_as_package = sys._getframe(3).f_globals["__name__"].endswith(".callable_room")
        warnings.warn(text, UserWarning, stacklevel=5 if called_as_package else 4)


def inspect(
    model: Any,
    example_inputs: Sequence[Any] | Any | None = None,
    *,
    options: FuseOptions | None = None,
    arch: Architecture | None = None,
    trust: bool = False,
) -> Report:
    """What :func:`fuse` would do: its report, with nothing verified and nothing kept.

    Arguments are those of :func:`fuse`; ``options`` says which rules would be used.
    """
    from convbn.export.loading.open import source_of
    from convbn.export.loading.source_model import LoadOptions
    from convbn.fuse.fold import fold

    source = source_of(model, LoadOptions(arch=arch, trust=trust))
    examples = as_tuple(source.model, example_inputs)
    folding = fold(source.model, examples, options=options, owned=source.path is not None)
    return replace(
        source.named_in(folding.report),
        verify={"status": "not run", "reason": "inspect changes nothing, so there is nothing to compare"},
    )


def save_fused(
    original: Any,
    result: FuseResult[Any],
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folded module as safetensors, with what the fold did to its structure in the header.

    Args:
        original: the module that was folded.
        result: of :func:`fuse`.
        path: the target.
        arch: a name of the architecture to keep in the file; it is never followed.
        overwrite: whether an existing file may be replaced.

    Raises:
        UsageError: the result is no module.
        NotSupportedError: what the fold did cannot be described.
        FileAccessError: the target cannot be written.
    """
    from convbn.export.checkpoints.fused import save_fused as save

    if result.report.kind != "torch.nn.Module":
        raise UsageError(f"a folded {result.report.kind} is no module", hint="save it in its own format")
    save(original, result.model, result.report, path, arch=arch, overwrite=overwrite)


def load_fused(path: str | os.PathLike[str], arch: Architecture, **arguments: Any) -> torch.nn.Module:
    """Rebuild a folded module from what ``convbn fuse -o OUT.safetensors`` or :func:`save_fused` wrote.

    Nothing is traced or computed: the architecture is built, given the structure of the fold and loaded
    strictly, bit for bit, in the stored dtypes.

    Args:
        path: the file.
        arch: the architecture that was folded: a name (``torchvision:resnet50``, ``timm:NAME``,
            ``hf-hub:ORG/NAME``, ``package.module:callable``), a callable, or a module, which is left as it
            is. The name in the file is not followed: a file does not choose which code runs.
        arguments: of the architecture.

    Returns:
        The folded module, out of wrappers that only run it, with the training flags that were saved: in eval mode,
        but for a BatchNorm that was kept in training mode.

    Raises:
        BadInputError: the file is no folded checkpoint or damaged, or the architecture is another one.
        NotSupportedError: the file is of another version.
        FileAccessError: the file cannot be read.
    """
    from convbn.export.checkpoints.fused import load_fused as load

    return load(path, arch, arguments)


def bench(
    model: Any,
    *others: Any,
    runtimes: Sequence[str] | None = None,
    example_inputs: Sequence[Any] | Any | None = None,
    inputs: Any | None = None,
    options: ProtocolOptions | None = None,
    fuse_options: FuseOptions | None = None,
    each: bool = False,
    grid: Grid | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure a model against its folded self, or against others that compute the same.

    Args:
        model: the baseline: an ONNX model or path, a module or an exported program.
        others: what to measure against it; without any, ``model`` is folded for it.
        runtimes: names of :func:`convbn.bench.runtimes.registry.runtime_names`; without any, those that
            can run on this machine.
        example_inputs: a module's positional inputs, or the only one.
        inputs: what all of them are run on, as for :func:`verify`.
        options: of the measuring protocol.
        fuse_options: of the fold.
        each: ``others`` are models of their own: measure every one against its folded self.
        grid: batch sizes, precisions and numbers of threads to measure at.
        progress: is told what happens next, the seconds that it took so far, and those in all, if known.

    Returns:
        Raw samples, statistics and verdicts, case by case; variants whose outputs differ are not timed.
    """
    from convbn.bench.cases.study import Grid, NamedModel, Study
    from convbn.bench.measure.options import Instruments, ProtocolOptions
    from convbn.bench.measure.protocol import measure
    from convbn.bench.models.given import given_inputs
    from convbn.export.loading.open import source_of

    options = options or ProtocolOptions()

    def opener(given: Any) -> Callable[[], SourceModel]:
        examples = as_tuple(given, example_inputs)

        def source() -> SourceModel:
            brought = given_inputs(source_of(runnable(given)), inputs)
            own = None if inputs is None else brought.example_inputs
            return replace(brought, example_inputs=examples or own, input_shapes=options.input_shapes)

        return source

    named = [NamedModel(_name_of(given, i), opener(given)) for i, given in enumerate((model, *others), 1)]
    study = Study(
        [[one] for one in named] if each else [named],
        grid or Grid(),
        runtimes=runtimes,
        fuse_options=fuse_options,
        threads=options.threads,
        seed=options.seed,
    )

    def tell(phase: str, done: int, steps: int) -> None:
        logger.info("%s", phase)
        if progress is not None:
            progress(phase, done, steps)

    return measure(study, options, instruments=Instruments(tell=tell))


def _name_of(model: Any, number: int) -> str:
    if isinstance(model, str | os.PathLike):
        return os.path.basename(os.fspath(model))
    return f"model {number}" if number > 1 else "model"
