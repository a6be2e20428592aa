"""``convbn export``: fold, prove, and write a TensorRT engine or an ONNX file."""

from __future__ import annotations

import argparse
from typing import Any

from convbn.api import build_engine, verified
from convbn.commands.shared import (
    console_of,
    from_source,
    fuse_options,
    output_kind,
    source_options,
    write_json,
)
from convbn.console import Console, printable
from convbn.errors import NotSupportedError, UsageError
from convbn.fuse.fold import fold
from convbn.fuse.report import Report
from convbn.sources import Source, open_source

__all__ = ["run"]

_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")


def run(options: argparse.Namespace) -> int:
    """Fold IN unless told otherwise, compare, and only then write OUT."""
    from convbn.export.files import check_target

    console = console_of(options)
    kind = output_kind(options.output, (".onnx", *_ENGINE_SUFFIXES))
    if options.precision not in ("as-is", "fp32"):
        raise NotSupportedError(f"--precision {options.precision} is not built yet", hint="fp32 is")
    check_target(options.output, overwrite=options.force)
    with console.phase("reading"):
        source = open_source(options.input, source_options(options))
        unfused = _as_onnx(source)
    report = None if options.no_fuse else _folded(unfused, source, options, console)
    model = unfused if report is None else report[0]
    if kind == ".onnx":
        if options.shapes or options.backend != "auto":
            raise UsageError("--shapes and --backend are for engines", source=options.output)
        from convbn.export.onnx_files import save_model

        save_model(model, options.output, overwrite=options.force)
        console.say(f"written: {printable(options.output)}")
    else:
        _build(model, unfused, report[1] if report else None, options, console)
    if report is not None:
        write_json(options.json, report[1].to_dict())
    elif options.json is not None:
        raise UsageError("--json writes the report of a fold, and --no-fuse makes none")
    return 0


def _as_onnx(source: Source) -> Any:
    """The ONNX model; of a checkpoint, exported exactly as it is."""
    if source.onnx is not None:
        return source.onnx
    if source.example_inputs is None:
        raise UsageError(
            "the shapes of the inputs are needed to export the module",
            source=source.path,
            hint="give --input-shape x:1x3x224x224",
        )
    from convbn.export.torch_files import export_onnx

    return export_onnx(source.model, source.example_inputs, input_names=source.input_names)


def _folded(
    unfused: Any, source: Source, options: argparse.Namespace, console: Console
) -> tuple[Any, Report]:
    verify = not options.no_verify
    with console.phase("folding"):
        folding = fold(unfused, options=fuse_options(options, verify=verify))
    report = from_source(folding.report, source)
    if verify:
        with console.phase("verifying"):
            report = verified(
                report,
                source.model,
                folding.model,
                example_inputs=source.example_inputs,
                input_shapes=source.shapes,
            )
    console.report(report)
    return folding.model, report


def _build(
    model: Any, unfused: Any, report: Report | None, options: argparse.Namespace, console: Console
) -> None:
    from convbn.export.shapes import parse_shapes

    summary = None
    if report is not None:
        full = report.to_dict()
        summary = {key: full[key] for key in ("batchnorm", "nodes", "folded", "kept", "merged", "verify")}

    def progress(phase: str, done: int, steps: int) -> None:
        console.progress(f"building: {phase} {done}/{steps}")

    artifact = build_engine(
        model,
        options.output,
        backend=options.backend,
        precision=options.precision,
        tf32=not options.no_tf32,
        shapes=parse_shapes(options.shapes) if options.shapes else None,
        unfused_model=unfused,
        fold_summary=summary,
        overwrite=options.force,
        progress=progress,
    )
    console.progress("")
    scale = artifact.sidecar["scale_layers"]
    if isinstance(scale, dict):
        console.say(f"Scale layers that TensorRT sees: {scale['before']} before, {scale['after']} after")
    console.say(
        f"written: {printable(artifact.path)} ({artifact.size:,} bytes, "
        f"{artifact.backend} {artifact.backend_version}) and {printable(artifact.sidecar_path.name)}"
    )
