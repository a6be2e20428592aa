"""``convbn export``: fold, prove, and write a TensorRT engine or an ONNX file."""

from __future__ import annotations

import argparse
from typing import Any

from convbn.api import build_engine
from convbn.commands.shared import (
    as_onnx,
    console_of,
    fuse_options,
    output_kind,
    proven,
    source_options,
    write_json,
)
from convbn.console import Console, printable
from convbn.errors import NotSupportedError, UsageError
from convbn.fuse.fold import fold
from convbn.fuse.report import Report
from convbn.sources import open_source

__all__ = ["run"]

_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")


def run(options: argparse.Namespace) -> int:
    """Fold IN unless told otherwise, compare, and only then write OUT."""
    from convbn.export.files import check_target

    console = console_of(options)
    kind = output_kind(options.output, (".onnx", *_ENGINE_SUFFIXES))
    if options.precision not in ("as-is", "fp32"):
        raise NotSupportedError(f"--precision {options.precision} is not built yet", hint="fp32 is")
    if kind == ".onnx" and (options.shapes or options.backend != "auto"):
        raise UsageError("--shapes and --backend are for engines", source=options.output)
    if options.no_fuse and options.json is not None:
        raise UsageError("--json writes the report of a fold, and --no-fuse makes none")
    check_target(options.output, overwrite=options.force)
    with console.phase("reading"):
        source = open_source(options.input, source_options(options))
        unfused = as_onnx(source)
    model, report = unfused, None
    if not options.no_fuse:
        with console.phase("folding"):
            folding = fold(unfused, options=fuse_options(options, verify=not options.no_verify))
        model, report = folding.model, proven(folding, source, console)
        console.report(report)
    if kind == ".onnx":
        from convbn.export.onnx_files import save_model

        save_model(model, options.output, overwrite=options.force)
        console.say(f"written: {printable(options.output)}")
    else:
        _build(model, unfused, report, options, console)
    if report is not None:
        write_json(options.json, report.to_dict())
    return 0


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
