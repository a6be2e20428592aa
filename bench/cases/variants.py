"""The variants of a model that are measured: as it came and folded, each in every form a runtime may need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.bench.runtimes.base import Variant
from convbn.bench.runtimes.registry import form_of
from convbn.errors import NotSupportedError, UsageError
from convbn.export.loading.source_model import SourceModel

if TYPE_CHECKING:
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report

__all__ = ["at_batch", "default_runtimes", "folded_variant", "loaded_onnx", "original_variant"]

_EVERYWHERE = ("onnxruntime-cpu@off", "onnxruntime-cpu")


def at_batch(source: SourceModel, batch: int | None) -> SourceModel:
    """The model with inputs of another batch size; an ONNX file keeps a batch that it has fixed.

    Args:
        source: the model.
        batch: size of axis 0 of every input; None leaves them as they are.

    Raises:
        NotSupportedError: the model is fixed to another batch.
        UsageError: a module has no example inputs to make a batch of.
    """
    if batch is None:
        return source
    if source.model is None:
        raise NotSupportedError("--batch is for models, and this is an engine", source=source.path)
    if source.onnx is not None:
        return replace(source, input_shapes=_onnx_shapes(source, batch))
    if source.kind == "torch.export.ExportedProgram":
        raise NotSupportedError(
            "an exported program is fixed to the batch it was captured with",
            source=source.path,
            hint="leave --batch out, or give the module",
        )
    if source.example_inputs is None:
        raise UsageError("--batch needs the shapes of the inputs", hint="give --input-shape x:1x3x224x224")
    return replace(source, example_inputs=tuple(_batched(x, batch) for x in source.example_inputs))


def original_variant(source: SourceModel, runtimes: Sequence[str] | None = None) -> Variant:
    """The model as it came; a module with example inputs is exported unfused for the ONNX runtimes.

    Args:
        source: the model.
        runtimes: what it will be run in; None for the defaults.
    """
    found = Variant("original", path=source.path, sha256=source.sha256, engines=source.engines)
    if source.model is None:
        return found
    if not source.is_torch:
        return replace(found, onnx=source.model if source.path is None else Path(source.path))
    exported = None
    wanted = runtimes is None or any(form_of(name) != "torch" for name in runtimes)
    if wanted and source.example_inputs is not None:
        from convbn.export.torch.save import export_onnx

        exported = export_onnx(source.model, source.example_inputs)
    return replace(found, onnx=exported, module=source.model, example_inputs=source.example_inputs)


def folded_variant(
    original: Variant, source: SourceModel, options: FuseOptions | None = None
) -> tuple[Variant, Report]:
    """The folded counterpart, form by form, and the report of the fold.

    Each form is folded as what it is: the module by its own frontend, the ONNX export by its own. The
    report is that of the form the user gave.

    Args:
        original: the variant.
        source: what it was made of.
        options: of the fold.

    Raises:
        NotSupportedError: there is nothing to fold, only an engine.
    """
    from convbn.fuse.fold import fold

    if source.model is None:
        raise NotSupportedError(
            "an engine cannot be folded", source=source.path, hint="name what to measure against it"
        )
    given = fold(source.model, source.example_inputs, options=options)
    report = source.named_in(given.report)
    if not source.is_torch:
        return Variant("folded", onnx=given.model), report
    onnx_form = None if original.onnx is None else fold(original.onnx, options=options).model
    examples = source.example_inputs
    return Variant("folded", onnx=onnx_form, module=given.model, example_inputs=examples), report


def default_runtimes(original: Variant) -> tuple[str, ...]:
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


def loaded_onnx(model: Any) -> Any:
    """The ONNX model itself, where it may be the path of its file."""
    if not isinstance(model, str | os.PathLike):
        return model
    from convbn.export.onnx_io.read import load_model

    return load_model(model)


def _batched(value: Any, batch: int) -> Any:
    if value.ndim == 0:
        raise NotSupportedError("an input without axes has no batch", hint="leave --batch out")
    repeats = [-(-batch // value.shape[0])] + [1] * (value.ndim - 1)
    return value.repeat(*repeats)[:batch].contiguous()


def _onnx_shapes(source: SourceModel, batch: int) -> dict[str, tuple[int, ...]]:
    from convbn.bench.models.inputs import input_specs

    shapes = dict(source.input_shapes or {})
    for spec in input_specs(source.model):
        given = shapes.get(spec.name, spec.shape)
        if given is None or any(size is None for size in given[1:]):
            raise UsageError(
                f"input {spec.name!r} has open axes besides the batch",
                source=source.path,
                hint=f"give its shape, like --input-shape {spec.name}:1x3x224x224",
            )
        fixed = spec.shape[0] if spec.shape else None
        if fixed not in (None, batch):
            raise NotSupportedError(
                f"batch {batch} does not fit: input {spec.name!r} is fixed to {fixed}",
                source=source.path,
                hint="export the model with an open batch (convbn export --dynamic-batch)",
            )
        shapes[spec.name] = (batch, *(int(size or 0) for size in given[1:]))
    return shapes
