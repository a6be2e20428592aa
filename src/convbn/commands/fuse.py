"""``convbn fuse``: fold, prove, write."""

from __future__ import annotations

import argparse
from typing import Any

from convbn.commands.shared import (
    as_onnx,
    console_of,
    fuse_options,
    output_kind,
    proven,
    source_options,
    write_json,
)
from convbn.console import printable
from convbn.fuse.fold import fold
from convbn.fuse.report import Report
from convbn.sources import Source, open_source

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Fold IN, compare it with what came in, and only then write OUT."""
    from convbn.export.files import check_target

    console = console_of(options)
    check_target(options.output, overwrite=options.force)
    with console.phase("reading"):
        source = open_source(options.input, source_options(options))
    kinds = (".onnx",) if source.module is None else (".onnx", ".pt2", ".safetensors")
    kind = output_kind(options.output, kinds)
    with console.phase("folding"):
        form = _captured_form(source, kind)
        # An ONNX model is only needed again if the result is compared with it.
        owned = form is not source.onnx or options.no_verify
        folding = fold(
            form,
            source.example_inputs if kind == ".safetensors" else None,
            options=fuse_options(options, verify=not options.no_verify),
            owned=owned,
        )
    report = proven(folding, source, console)
    with console.phase("writing"):
        _write(folding.model, report, source, kind, options)
    console.report(report)
    console.say(f"written: {printable(options.output)}")
    write_json(options.json, report.to_dict())
    return 0


def _captured_form(source: Source, kind: str) -> Any:
    """What is folded: the form that is written, so that every rule for it can be used."""
    if source.module is None or kind == ".safetensors":
        return source.model
    if kind == ".onnx":
        return as_onnx(source)
    from convbn.export.torch_files import export_program

    return export_program(source.module, source.needed_inputs())


def _write(artefact: Any, report: Report, source: Source, kind: str, options: argparse.Namespace) -> None:
    if kind == ".onnx":
        from convbn.export.onnx_files import save_model

        save_model(artefact, options.output, overwrite=options.force)
        return
    from convbn.export.torch_files import save_program, save_tensors

    if kind == ".pt2":
        save_program(artefact, source.example_inputs or (), options.output, overwrite=options.force)
        return
    import json

    metadata = {"convbn": json.dumps(report.to_dict(), ensure_ascii=False), "format": "pt"}
    save_tensors(artefact.state_dict(), metadata, options.output, overwrite=options.force)
