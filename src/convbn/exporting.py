"""The Python API of exports: ONNX models, TensorRT engines and packages, converted and verified on the way."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from convbn.common.text import one_line
from convbn.errors import CheckFailedError, ConvBNError, NotSupportedError, UsageError
from convbn.proof import as_tuple, verified

if TYPE_CHECKING:
    import onnx

    from convbn.common.progress import Progress
    from convbn.export.engines.build.build import EngineArtifact
    from convbn.export.engines.build.options import EngineOptions
    from convbn.export.loading.source_model import SourceModel
    from convbn.export.packages.package import LoadedPackage, Packed
    from convbn.export.precision.options import PrecisionOptions
    from convbn.export.shapes import Profile
    from convbn.fuse.options import FuseOptions

__all__ = ["build_engine", "export_onnx", "write_package"]


def export_onnx(
    module: Any,
    example_inputs: Sequence[Any] | Any,
    *,
    fold: bool = True,
    options: FuseOptions | None = None,
    opset: int | None = None,
    dynamic_batch: bool = False,
    inputs: Any | None = None,
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """Export a module or exported program to ONNX, folded or exactly as it is.

    PyTorch's exporter folds BatchNorm on its own unless it is kept from it; here it never does, so
    ``fold=False`` gives a baseline that really holds its BatchNorms.

    Args:
        module: a ``torch.nn.Module`` in eval mode or an ``ExportedProgram``; left untouched.
        example_inputs: its positional inputs, or the only one.
        fold: fold the exported graph and verify it: its folds on the values of the exported graph before, its
            outputs against ``module``.
        options: of the fold.
        opset: version of the default operator set.
        dynamic_batch: leave dimension 0 of every input free.
        inputs: what to verify the fold with, as for :func:`convbn.verify`.
        progress: is told by the proof: a phase, the steps that are done, and the steps in all.

    Raises:
        CheckFailedError: the folded graph differs, or the comparison proves nothing.
        NotSupportedError: the module cannot be exported.
    """
    from convbn.export.torch.save import export_onnx as export

    examples = as_tuple(module, example_inputs) or ()
    model = export(module, examples, opset=opset, dynamic_batch=dynamic_batch)
    if not fold:
        return model
    from convbn.fuse.fold import fold as fold_model
    from convbn.fuse.options import FuseOptions

    options = options or FuseOptions()
    folding = fold_model(model, options=options, owned=not options.verify)
    if options.verify:
        from convbn.bench.models.given import given_inputs
        from convbn.export.loading.open import source_of

        given = given_inputs(source_of(module), inputs).inputs
        verified(
            folding.report,
            module,
            folding.model,
            example_inputs=examples,
            inputs=given,
            exported=model,
            progress=progress,
        )
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
    inputs: Any | None = None,
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
        inputs: what that comparison runs on where there is no calibration data, as for :func:`convbn.verify`.
        tolerance: how far they may be apart, in place of the precision's own bound.
        conversion: the record of a conversion that was made already; then none is made here.
    """
    from convbn.export.engines.build.build import build_engine as build
    from convbn.export.precision.precisions import AS_IS, PRECISIONS

    if conversion is None and precision not in (AS_IS, "fp32"):
        from convbn.bench.models.given import given_inputs
        from convbn.converting import Conversion, converted
        from convbn.export.files.sidecar import check_with_sidecar
        from convbn.export.loading.source_model import SourceModel
        from convbn.export.onnx_io.read import load_model

        check_with_sidecar(out, overwrite=overwrite)
        proto = load_model(model) if isinstance(model, str | os.PathLike) else model
        wanted = Conversion(
            precision, precision_options, calibration=calibration, verify=verify, tolerance=tolerance
        )
        result = converted(proto, wanted, given_inputs(SourceModel(proto), inputs))
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


def write_package(
    model: Any,
    out: str | os.PathLike[str],
    source: SourceModel,
    *,
    fold_summary: Mapping[str, Any] | None = None,
    conversion: Mapping[str, Any] | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a package of a folded model, load it back, compare it with the model, and write it with its sidecar.

    Args:
        model: an ONNX model, or an exported program, as :mod:`convbn.export.formats` says for the suffix of `out`.
        out: where the package goes.
        source: where the model is from: its example inputs and shapes are used.
        fold_summary, conversion: recorded in the sidecar as they are.
        verify: load it back and compare; without, the sidecar says so.
        overwrite: whether existing files may be replaced.

    Returns:
        The content of the sidecar.

    Raises:
        CheckFailedError: what was loaded back gives other outputs; nothing is written.
        NotSupportedError: what makes it is missing, cannot take the model, or does not load what it made.
        FileAccessError: a file cannot be written.
    """
    from convbn.bench.equivalence.compare import compare
    from convbn.bench.equivalence.tolerance import tolerance_of
    from convbn.export.files.atomic import sha256_file
    from convbn.export.files.sidecar import check_with_sidecar, tool_versions, write_with_sidecar
    from convbn.export.formats import format_of
    from convbn.export.precision.carried import carried_precision

    row = format_of(os.fspath(out))
    package = row.packager()
    check_with_sidecar(out, overwrite=overwrite)
    package.require()
    with tempfile.TemporaryDirectory(prefix="convbn-") as folder:
        packed = package.pack(model, source.example_inputs or (), Path(folder) / f"model{row.suffixes[0]}")
        outcome: dict[str, Any] = {"status": "not run", "reason": "the options say so"}
        if verify:
            precision = carried_precision(model) if row.made_of == "onnx" else "fp32"
            answer = compare(
                model,
                _loaded(packed, row.name),
                inputs=source.inputs,
                shapes=source.input_shapes,
                example_inputs=source.example_inputs,
                tolerance=None if precision == "fp32" else tolerance_of(precision),
            )
            if not answer.equal:
                cause = f"the {row.name} that was made differs from the folded model: {answer.reason}"
                raise CheckFailedError(cause, source=source.path, hint="nothing was written")
            outcome = answer.to_dict()
        sidecar = {
            "schema_version": "1",
            "format": row.name,
            "package": {"sha256": sha256_file(packed.path), "bytes": packed.path.stat().st_size},
            "tools": tool_versions(*package.tools),
            "source": {"file": source.path and Path(source.path).name, "sha256": source.sha256},
            "fold_summary": None if fold_summary is None else dict(fold_summary),
            "conversion": None if conversion is None else dict(conversion),
            "facts": dict(packed.facts),
            "verify": outcome,
        }

        def copied(file: BinaryIO) -> None:
            with packed.path.open("rb") as made:
                shutil.copyfileobj(made, file)

        write_with_sidecar(copied, sidecar, out, overwrite=overwrite)
    return sidecar


def _loaded(packed: Packed, name: str) -> LoadedPackage:
    try:
        return packed.load()
    except ConvBNError:
        raise
    except Exception as error:  # runtimes raise what they like
        cause = f"the {name} that was made cannot be loaded back ({one_line(error, 200)})"
        raise NotSupportedError(
            cause, hint="nothing was written; another version of its runtime may do"
        ) from error
