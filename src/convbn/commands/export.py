"""``convbn export``: fold, prove, and write an engine, an ONNX file, a PyTorch program or a package of one runtime."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.commands.options.engine import engine_options, refuse_engine_options
from convbn.commands.options.precision import check_conversion, conversion_of, say_conversion
from convbn.commands.steps.console import Console
from convbn.commands.steps.shared import (
    console_of,
    fold_summary,
    fuse_options,
    load_options,
    proven,
    refuse_unproven,
    refuse_warnings,
    write_json,
)
from convbn.common.text import printable
from convbn.errors import UsageError
from convbn.export.files.sidecar import check_with_sidecar, sidecar_path
from convbn.export.formats import FORMATS, Format, format_of
from convbn.export.loading.open import open_source
from convbn.export.loading.source_model import SourceModel
from convbn.exporting import build_engine
from convbn.fuse.fold import fold
from convbn.fuse.report import Report

if TYPE_CHECKING:
    import onnx

__all__ = ["run"]

#: Calibration batches that a package is compared on.
_SAMPLES = 4


def run(options: argparse.Namespace) -> int:
    """Fold IN unless told otherwise, compare, and only then write OUT."""
    console = console_of(options)
    target = format_of(options.output, (row for row in FORMATS if "export" in row.verbs))
    _check(options, target)
    with console.phase("reading"):
        source = open_source(options.input, load_options(options))
        unfused = _captured(source, options, target)
        if target.made_of == "onnx":
            _check_model(unfused, options, target)
    model, report = unfused, None
    if not options.no_fuse:
        with console.phase("folding"):
            how = fuse_options(options, verify=not options.no_verify)
            folding = fold(unfused, options=how, input_shapes=source.input_shapes)
        refuse_warnings(options, source.named_in(folding.report))
        model, report = (
            folding.model,
            proven(folding, source, console, captured=unfused, strict=options.strict),
        )
        console.report(report)
    model, conversion = _converted(model, source, options, console)
    if target.package is not None:
        _package(model, source, report, conversion, options, console)
    elif target.made_of == "program":
        from convbn.export.torch.save import save_program

        save_program(model, source.example_inputs or (), options.output, overwrite=options.force)
        console.written(options.output)
    elif "engine" not in target.takes:
        _write_onnx(model, source, report, conversion, options, console)
    else:
        # As it came, the file itself is what the engine is made of: its hash and name go into the sidecar.
        as_it_came = model is source.onnx
        _build(options.input if as_it_came else model, unfused, report, conversion, options, console)
    if report is not None:
        added = {} if conversion is None else {"precision": dict(conversion)}
        write_json(options.json, report.to_dict() | added)
    return 0


def _converted(
    model: Any, source: SourceModel, options: argparse.Namespace, console: Console
) -> tuple[Any, Mapping[str, Any] | None]:
    """The model in the precision that was asked for, and the record of it; None where none was."""
    if options.precision == "as-is":
        return model, None
    from convbn.converting import converted

    with console.phase(f"converting to {options.precision}") as progress:
        result = converted(model, conversion_of(options), source, progress)
    say_conversion(result.record, console)
    return result.model, result.record


def _check(options: argparse.Namespace, target: Format) -> None:
    """Refuse what makes no sense together, before any work is done."""
    if "engine" in target.takes:
        _check_engine(options)
    else:
        refuse_engine_options(options)
    for name in ("opset", "triton", "dynamic_batch"):
        if getattr(options, name) and name not in target.takes:
            raise UsageError(f"--{name.replace('_', '-')} is not for {target.name}s", source=options.output)
    if target.package is not None:
        check_with_sidecar(options.output, overwrite=options.force)
        target.packager().require()
    refuse_unproven(options)
    if options.no_fuse and options.strict:
        raise UsageError("--strict judges a fold, and --no-fuse makes none")
    if options.no_fuse and options.json is not None:
        raise UsageError("--json writes the report of a fold, and --no-fuse makes none")
    if options.triton is not None:
        from convbn.export.engines.triton import check_repository

        check_repository(options.triton, Path(options.output).stem, overwrite=options.force)


def _check_model(model: onnx.ModelProto, options: argparse.Namespace, target: Format) -> None:
    """Refuse what does not fit the model that was read, before anything is folded."""
    if "engine" in target.takes:
        from convbn.export.engines.build.profiles import check_profiles
        from convbn.export.shapes import parse_profiles

        check_profiles(model, parse_profiles(options.shapes))
    check_conversion(model, options)


def _check_engine(options: argparse.Namespace) -> None:
    from convbn.export.engines.backends.gpus import list_gpus
    from convbn.export.engines.backends.registry import choose_backend
    from convbn.export.engines.build.configuration import require_honoured
    from convbn.export.shapes import parse_profiles

    wanted = engine_options(options)
    parse_profiles(options.shapes)
    backend = choose_backend(options.backend)
    require_honoured(backend, wanted, gpu=bool(list_gpus()))
    if options.triton is not None:
        from convbn.export.engines.triton import require_served

        require_served(backend.name)


def _captured(source: SourceModel, options: argparse.Namespace, target: Format) -> Any:
    """The form that is folded and written, exactly as it came."""
    if source.onnx is not None:
        if target.made_of != "onnx":
            raise UsageError(f"an ONNX file cannot become {target.one}", source=source.path)
        if options.dynamic_batch:
            hint = "export the checkpoint with it"
            raise UsageError("--dynamic-batch is for checkpoints", source=source.path, hint=hint)
        if options.opset is None:
            return source.onnx
        from convbn.export.onnx_io.provenance import in_opset

        return in_opset(source.onnx, options.opset)
    return source.captured(target.made_of, dynamic_batch=options.dynamic_batch, opset=options.opset)


def _package(
    model: Any,
    source: SourceModel,
    report: Report | None,
    conversion: Mapping[str, Any] | None,
    options: argparse.Namespace,
    console: Console,
) -> None:
    """What one runtime loads as it is, loaded back and compared with what it is made of."""
    from convbn.exporting import write_package

    wanted, inputs = conversion_of(options), source.inputs
    if wanted.calibration is not None:
        from convbn.export.precision.int8.calibration import calibration_from

        given = calibration_from(wanted.calibration, model, preprocess=wanted.preprocess, limit=wanted.limit)
        inputs = list(given.limited(_SAMPLES).samples())
    with console.phase(f"making {format_of(options.output).one}"):
        sidecar = write_package(
            model,
            options.output,
            replace(source, inputs=inputs),
            fold_summary=None if report is None else fold_summary(report),
            conversion=conversion,
            verify=not options.no_verify,
            overwrite=options.force,
        )
    verify = sidecar["verify"]
    console.say(f"loaded back: {printable(verify['reason'])}")
    size, beside = sidecar["package"]["bytes"], sidecar_path(options.output).name
    console.say(f"written: {printable(options.output)} ({size:,} bytes) and {printable(beside)}")


def _write_onnx(
    model: Any,
    source: SourceModel,
    report: Report | None,
    conversion: Mapping[str, Any] | None,
    options: argparse.Namespace,
    console: Console,
) -> None:
    from convbn import __version__
    from convbn.export.onnx_io.provenance import add_provenance
    from convbn.export.onnx_io.read import save_model

    facts = {"version": __version__, "source": Path(options.input).name}
    if source.sha256 is not None:
        facts["source_sha256"] = source.sha256
    if report is not None:
        facts["batchnorm"] = f"{report.batchnorm.before} before, {report.batchnorm.after} after"
        facts["verified"] = str(report.verify["status"])
    if conversion is not None:
        facts["precision"] = json.dumps(conversion, sort_keys=True)
    add_provenance(model, facts)
    described = None
    if options.triton is not None:
        from convbn.export.engines.triton import onnx_model

        described = onnx_model(model, max_batch=_largest_batch(options))
    save_model(model, options.output, overwrite=options.force)
    console.written(options.output)
    if described is not None:

        def write(path: Path) -> None:
            save_model(model, path, overwrite=options.force)

        _serve(described, write, options, console)


def _largest_batch(options: argparse.Namespace) -> int:
    from convbn.export.shapes import parse_profiles

    ranges = [shapes for profile in parse_profiles(options.shapes) for shapes in profile.values()]
    return max((shapes.max[0] for shapes in ranges), default=0)


def _build(
    model: Any,
    unfused: Any,
    report: Report | None,
    conversion: Mapping[str, Any] | None,
    options: argparse.Namespace,
    console: Console,
) -> None:
    from convbn.export.shapes import parse_profiles

    with console.phase("building") as progress:
        artifact = build_engine(
            model,
            options.output,
            backend=options.backend,
            precision=options.precision,
            tf32=not options.no_tf32,
            shapes=parse_profiles(options.shapes),
            options=engine_options(options),
            unfused_model=unfused,
            fold_summary=None if report is None else fold_summary(report),
            conversion=conversion,
            overwrite=options.force,
            progress=progress,
        )
    scale = artifact.sidecar["scale_layers"]
    if isinstance(scale, dict):
        console.say(f"Scale layers that TensorRT sees: {scale['before']} before, {scale['after']} after")
    for warning in artifact.sidecar["warnings"]:  # type: ignore[attr-defined]  # a list, see the schema
        console.say(f"note: {printable(warning)}")
    console.say(
        f"written: {printable(artifact.path)} ({artifact.size:,} bytes, "
        f"{artifact.backend} {artifact.backend_version}) and {printable(artifact.sidecar_path.name)}"
    )
    if options.triton is not None:
        from convbn.export.engines.triton import copy_to, from_sidecar

        _serve(from_sidecar(artifact.sidecar), copy_to(artifact.path, options.force), options, console)


def _serve(described: Any, write: Any, options: argparse.Namespace, console: Console) -> None:
    from convbn.export.engines.triton import write_repository

    name = Path(options.output).stem
    folder = write_repository(options.triton, name, described, write, overwrite=options.force)
    console.say(f"written: {printable(folder)}, a model for Triton")
