"""The sides of a benchmark: the original and the folded model, each in every form a runtime may need."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convbn.errors import NotSupportedError, UsageError

if TYPE_CHECKING:
    from convbn.bench.runtimes.base import Side
    from convbn.export.engines.run.load import EngineFile
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report

__all__ = [
    "SELF_FUSED",
    "Subject",
    "at_batch",
    "default_runtimes",
    "folded_side",
    "loaded_model",
    "onnx_wanted",
    "original_side",
]

#: The side that is the original, optimised by the runtime itself.
SELF_FUSED = "fused by runtime"
_EVERYWHERE = ("onnxruntime-cpu@off", "onnxruntime-cpu")


@dataclass(frozen=True)
class Subject:
    """A model to be measured, opened.

    Attributes:
        model: an ONNX model or its path, a module, an exported program, or None for an engine.
        example_inputs: positional inputs of a module.
        input_shapes: full shapes by input name.
        path: the file it came from.
        sha256: of that file.
        onnx: the model itself, where ``model`` is the path of its file.
        engines: an engine's file, by the runtime that runs it.
        notes: what was done to the file's content before it was a model.
    """

    model: Any
    example_inputs: tuple[Any, ...] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    path: str | None = None
    sha256: str | None = None
    onnx: Any = None
    engines: Mapping[str, EngineFile] | None = None
    notes: tuple[str, ...] = ()


def at_batch(subject: Subject, batch: int | None) -> Subject:
    """The subject with inputs of another batch size; an ONNX file keeps a batch that it has fixed.

    Args:
        subject: the model.
        batch: size of axis 0 of every input; None leaves them as they are.

    Raises:
        NotSupportedError: the model is fixed to another batch.
        UsageError: a module has no example inputs to make a batch of.
    """
    if batch is None:
        return subject
    if subject.model is None:
        raise NotSupportedError("--batch is for models, and this is an engine", source=subject.path)
    if hasattr(subject.model, "graph_signature"):
        raise NotSupportedError(
            "an exported program is fixed to the batch it was captured with",
            source=subject.path,
            hint="leave --batch out, or give the module",
        )
    if _is_torch(subject.model):
        if subject.example_inputs is None:
            raise UsageError(
                "--batch needs the shapes of the inputs", hint="give --input-shape x:1x3x224x224"
            )
        return replace(subject, example_inputs=tuple(_batched(x, batch) for x in subject.example_inputs))
    return replace(subject, input_shapes=_onnx_shapes(subject, batch))


def original_side(subject: Subject, runtimes: Sequence[str] | None = None) -> Side:
    """The model as it came; a module with example inputs is exported unfused for the ONNX runtimes.

    Args:
        subject: the model.
        runtimes: what it will be run in; None for the defaults.
    """
    from convbn.bench.runtimes.base import Side

    side = Side("original", path=subject.path, sha256=subject.sha256)
    if subject.model is None:
        return replace(side, engines=subject.engines or {})
    if not _is_torch(subject.model):
        return replace(side, onnx=subject.model)
    exported = None
    if onnx_wanted(runtimes) and subject.example_inputs is not None:
        from convbn.export.torch.save import export_onnx

        exported = export_onnx(subject.model, subject.example_inputs)
    return replace(side, onnx=exported, module=subject.model, example_inputs=subject.example_inputs)


def folded_side(
    original: Side, subject: Subject | None = None, options: FuseOptions | None = None
) -> tuple[Side, Report]:
    """The folded counterpart, form by form, and the report of the fold.

    Each form is folded as what it is: the module by its own frontend, the ONNX export by its own. The
    report is that of the form the user gave.

    Args:
        original: the side.
        subject: what it was made of.
        options: of the fold.

    Raises:
        NotSupportedError: there is nothing to fold, only an engine.
    """
    from convbn.bench.runtimes.base import Side
    from convbn.fuse.fold import fold

    subject = subject or Subject(original.onnx if original.module is None else original.module)
    onnx_fold = None
    if original.onnx is not None:
        held = loaded_model(original.onnx) if subject.onnx is None else subject.onnx
        onnx_fold = fold(held, options=options)
    if original.module is None:
        if onnx_fold is None:
            raise NotSupportedError(
                "an engine cannot be folded", source=subject.path, hint="name what to measure against it"
            )
        return Side("folded", onnx=onnx_fold.model), _of_file(onnx_fold.report, subject)
    module_fold = fold(original.module, original.example_inputs, options=options)
    folded = Side(
        "folded",
        onnx=None if onnx_fold is None else onnx_fold.model,
        module=module_fold.model,
        example_inputs=original.example_inputs,
    )
    return folded, _of_file(module_fold.report, subject)


def _of_file(report: Report, subject: Subject) -> Report:
    notes = (*subject.notes, *report.notes)
    return replace(report, path=subject.path, sha256=subject.sha256, notes=notes)


def default_runtimes(original: Side) -> tuple[str, ...]:
    """What can run the original here: the CPU runtimes, and CUDA ones where there is a GPU for them."""
    chosen: list[str] = list(original.engines)
    if original.onnx is not None:
        import onnxruntime

        # Off first: it is the only setting in which onnxruntime does not fold the original itself.
        chosen += _EVERYWHERE
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            chosen += ["onnxruntime-cuda@off", "onnxruntime-cuda"]
    if original.module is not None:
        import torch

        chosen.append("torch-cpu")
        if torch.cuda.is_available():
            chosen += ["torch-cudagraph", "torch-cuda"]
    # A model that could not be made has no form; its rows still have to stand somewhere.
    return tuple(chosen) or _EVERYWHERE


def onnx_wanted(runtimes: Sequence[str] | None) -> bool:
    """Whether any of these runtimes needs the ONNX form; some of the defaults do."""
    from convbn.bench.runtimes.registry import form_of

    return runtimes is None or any(form_of(name) != "torch" for name in runtimes)


def _is_torch(model: Any) -> bool:
    from convbn.fuse.kinds import kind_of

    return kind_of(model) in ("torch.nn.Module", "torch.export.ExportedProgram")


def loaded_model(model: Any) -> Any:
    """The model itself, where it may be the path of its file."""
    if not isinstance(model, str | os.PathLike):
        return model
    from convbn.export.onnx_io.read import load_model

    return load_model(model)


def _batched(value: Any, batch: int) -> Any:
    if value.ndim == 0:
        raise NotSupportedError("an input without axes has no batch", hint="leave --batch out")
    repeats = [-(-batch // value.shape[0])] + [1] * (value.ndim - 1)
    return value.repeat(*repeats)[:batch].contiguous()


def _onnx_shapes(subject: Subject, batch: int) -> dict[str, tuple[int, ...]]:
    from convbn.bench.models.inputs import input_specs

    shapes = dict(subject.input_shapes or {})
    for spec in input_specs(subject.model):
        given = shapes.get(spec.name, spec.shape)
        if given is None or any(size is None for size in given[1:]):
            raise UsageError(
                f"input {spec.name!r} has open axes besides the batch",
                source=subject.path,
                hint=f"give its shape, like --input-shape {spec.name}:1x3x224x224",
            )
        fixed = spec.shape[0] if spec.shape else None
        if fixed not in (None, batch):
            raise NotSupportedError(
                f"batch {batch} does not fit: input {spec.name!r} is fixed to {fixed}",
                source=subject.path,
                hint="export the model with an open batch (convbn export --dynamic-batch)",
            )
        shapes[spec.name] = (batch, *(int(size or 0) for size in given[1:]))
    return shapes
