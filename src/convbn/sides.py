"""The sides of a benchmark: the original and the folded model, each in every form a runtime may need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convbn.bench.runtimes.base import Side
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report

__all__ = ["default_runtimes", "folded_side", "onnx_wanted", "original_side", "other_side"]


def original_side(model: Any, example_inputs: tuple[Any, ...] | None, *, onnx_wanted: bool = True) -> Side:
    """The model as it came; a module with example inputs is exported unfused for the ONNX runtimes.

    Args:
        model: an ONNX model, its path, a module or an exported program.
        example_inputs: positional inputs of a module.
        onnx_wanted: whether any runtime will ask for the ONNX form.
    """
    from convbn.bench.runtimes.base import Side

    if not _is_torch(model):
        return Side("original", onnx=model)
    exported = None
    if onnx_wanted and example_inputs is not None:
        from convbn.export.torch_files import export_onnx

        exported = export_onnx(model, example_inputs)
    return Side("original", onnx=exported, module=model, example_inputs=example_inputs)


def folded_side(original: Side, options: FuseOptions | None = None) -> tuple[Side, Report]:
    """The folded counterpart, form by form, and the report of the fold.

    Each form is folded as what it is: the module by its own frontend, the ONNX export by its own. The
    report is that of the form the user gave.
    """
    from convbn.bench.runtimes.base import Side
    from convbn.fuse.fold import fold

    onnx_fold = None if original.onnx is None else fold(_loaded(original.onnx), options=options)
    if original.module is None:
        if onnx_fold is None:
            raise ValueError("a side has neither form")
        return Side("folded", onnx=onnx_fold.model), onnx_fold.report
    module_fold = fold(original.module, original.example_inputs, options=options)
    folded = Side(
        "folded",
        onnx=None if onnx_fold is None else onnx_fold.model,
        module=module_fold.model,
        example_inputs=original.example_inputs,
    )
    return folded, module_fold.report


def other_side(model: Any, index: int, example_inputs: tuple[Any, ...] | None) -> Side:
    """A model the user names beside the original; called by its file name, else by its number."""
    from convbn.bench.runtimes.base import Side

    if _is_torch(model):
        return Side(f"model {index}", module=model, example_inputs=example_inputs)
    named = isinstance(model, str | os.PathLike)
    return Side(os.path.basename(os.fspath(model)) if named else f"model {index}", onnx=model)


def default_runtimes(original: Side) -> tuple[str, ...]:
    """What can run the original here: the CPU runtimes, and CUDA ones where there is a GPU for them."""
    chosen: list[str] = []
    if original.onnx is not None:
        import onnxruntime

        # Off first: it is the only setting in which onnxruntime does not fold the original itself.
        chosen += ["onnxruntime-cpu@off", "onnxruntime-cpu"]
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            chosen.append("onnxruntime-cuda")
    if original.module is not None:
        import torch

        chosen.append("torch-cpu")
        if torch.cuda.is_available():
            chosen.append("torch-cuda")
    return tuple(chosen)


def onnx_wanted(runtimes: Sequence[str] | None) -> bool:
    """Whether any of these runtimes runs ONNX models; all defaults do."""
    return runtimes is None or any(name.startswith("onnxruntime") for name in runtimes)


def _is_torch(model: Any) -> bool:
    from convbn.fuse.fold import kind_of

    return kind_of(model) in ("torch.nn.Module", "torch.export.ExportedProgram")


def _loaded(model: Any) -> Any:
    if not isinstance(model, str | os.PathLike):
        return model
    from convbn.export.onnx_files import load_model

    return load_model(model)
