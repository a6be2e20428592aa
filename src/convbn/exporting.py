"""The Python API of exports: ONNX models and TensorRT engines, converted and verified on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbn.errors import UsageError
from convbn.proof import as_tuple, verified

if TYPE_CHECKING:
    import onnx

    from convbn.export.engines.build.build import EngineArtifact
    from convbn.export.engines.build.options import EngineOptions
    from convbn.export.precision.options import PrecisionOptions
    from convbn.export.shapes import Profile
    from convbn.fuse.options import FuseOptions

__all__ = ["build_engine", "export_onnx"]


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
    from convbn.export.torch.save import export_onnx as export

    examples = as_tuple(module, example_inputs) or ()
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
    shapes: Profile | Sequence[Profile] | None = None,
    options: EngineOptions | None = None,
    unfused_model: onnx.ModelProto | str | os.PathLike[str] | None = None,
    fold_summary: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
    calibration: Any = None,
    precision_options: PrecisionOptions | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    conversion: Mapping[str, Any] | None = None,
) -> EngineArtifact:
    """Build a TensorRT engine and its sidecar ``<out>.json``; see :mod:`convbn.export.engines`.

    A float32 model is brought into the precision that is asked for and compared with itself before anything
    is built. It should be folded: quantisation comes after folding.

    Args:
        model: a model, or the path of one.
        out: where the engine goes.
        backend: ``auto``, ``tensorrt`` or ``tensorrt-rtx``.
        precision: ``as-is``, ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        tf32: whether float32 convolutions may round their inputs to TF32 on the GPU.
        shapes: ranges of the dynamic inputs.
        options: what else is wanted of the build.
        unfused_model: the model before it was folded; its Scale layers are counted.
        fold_summary: recorded in the sidecar.
        overwrite: whether existing files may be replaced.
        progress: called with phase, steps done and steps in all; False cancels.
        calibration: a path, or samples: mappings of arrays by input name, or arrays for the only input.
        precision_options: how the precision is reached.
        verify: compare the outputs of the converted model with those of the given one, in onnxruntime.
        tolerance: how far they may be apart, in place of the precision's own bound.
        conversion: the record of a conversion that was made already; then none is made here.
    """
    from convbn.export.engines.build.build import build_engine as build
    from convbn.export.precision.precisions import AS_IS, PRECISIONS

    if conversion is None and precision not in (AS_IS, "fp32"):
        from convbn.converting import Conversion, converted
        from convbn.export.engines.sidecar import check_engine_target
        from convbn.export.onnx_io.read import load_model

        check_engine_target(out, overwrite=overwrite)
        proto = load_model(model) if isinstance(model, str | os.PathLike) else model
        wanted = Conversion(
            precision, precision_options, calibration=calibration, verify=verify, tolerance=tolerance
        )
        result = converted(proto, wanted)
        model, conversion = (result.model if result.changed else model), result.record
    elif conversion is None and calibration is not None:
        meant = ", ".join(row.name for row in PRECISIONS.values() if row.calibration != "none")
        raise UsageError(f"calibration data is for {meant}, not for precision {precision}")
    return build(
        model,
        out,
        backend=backend,
        precision=precision,
        tf32=tf32,
        shapes=shapes,
        options=options,
        unfused_model=unfused_model,
        fold_summary=fold_summary,
        conversion=conversion,
        overwrite=overwrite,
        progress=progress,
    )
