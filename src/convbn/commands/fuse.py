"""``convbn fuse``: fold, prove, write."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convbn.commands.steps.console import Console
from convbn.commands.steps.shared import (
    console_of,
    fuse_options,
    load_options,
    proven,
    refuse_unproven,
    refuse_warnings,
    write_json,
)
from convbn.errors import UsageError
from convbn.export.formats import FORMATS, Format, format_of
from convbn.export.loading.open import open_source
from convbn.export.loading.source_model import SourceModel
from convbn.export.onnx_io.locations import stored_bytes
from convbn.fuse.fold import fold
from convbn.fuse.report import Before, Report

if TYPE_CHECKING:
    from convbn.export.onnx_io.read import OpenModel

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Fold IN, compare it with what came in, and only then write OUT."""
    console = console_of(options)
    refuse_unproven(options)
    if options.external_data != "auto" and "external_data" not in format_of(options.output).takes:
        raise UsageError("--external-data is for ONNX files", source=options.output)
    with console.phase("reading"):
        source = open_source(
            options.input, load_options(options), light=True, hashed=options.json is not None
        )
    target = format_of(options.output, _formats(source))
    if source.opened is not None:
        report = _file_to_file(source, source.opened, options, console)
    else:
        # Asked now: OUT may take its place.
        size = stored_bytes(options.input) if os.path.isfile(options.input) else None
        report = _made(source, target, options, console)
        if size is not None:
            report = replace(report, size=Before(size, stored_bytes(options.output)))
    console.report(report)
    console.written(options.output)
    write_json(options.json, report)
    return 0


def _file_to_file(
    source: SourceModel, opened: OpenModel, options: argparse.Namespace, console: Console
) -> Report:
    """ONNX to ONNX: the result is compared where it will lie, by its path."""
    from convbn.onnx_pass import Written, fold_opened, staged_fold

    with opened.files:
        with console.phase("folding"):
            how = fuse_options(options, verify=not options.no_verify)
            folding = fold_opened(opened, how, input_shapes=source.input_shapes)
        refuse_warnings(options, source.named_in(folding.report))
        target = Written(options.output, options.force, options.external_data)
        with ExitStack() as writing:
            with console.phase("writing"):
                staged = writing.enter_context(staged_fold(opened, folding, target))
            report = proven(folding, source, console, candidate=staged.path, strict=options.strict)
    return replace(report, size=Before(opened.stored, staged.size))


def _made(source: SourceModel, target: Format, options: argparse.Namespace, console: Console) -> Report:
    """A module or program, folded in the form that is written."""
    with console.phase("folding"):
        captured = source.captured(target.made_of)
        folding = fold(
            captured,
            source.example_inputs if target.made_of == "module" else None,
            options=fuse_options(options, verify=not options.no_verify),
            owned=options.no_verify,
        )
    refuse_warnings(options, source.named_in(folding.report))
    report = proven(folding, source, console, captured=captured, strict=options.strict)
    with console.phase("writing"):
        _write(folding.model, report, source, target, options)
    return report


def _formats(source: SourceModel) -> tuple[Format, ...]:
    """What can be written: an ONNX file is not turned back into PyTorch, nor a program into a module."""
    forms: tuple[str, ...] = ("onnx",) if source.onnx is not None else ("onnx", "program", "module")
    if source.onnx is None and source.kind != "torch.nn.Module":
        forms = ("onnx", "program")
    return tuple(row for row in FORMATS if "fuse" in row.verbs and row.made_of in forms)


def _write(
    artefact: Any, report: Report, source: SourceModel, target: Format, options: argparse.Namespace
) -> None:
    if target.made_of == "onnx":
        from convbn.export.onnx_io.read import save_model

        save_model(artefact, options.output, overwrite=options.force, external_data=options.external_data)
        return
    if target.made_of == "program":
        from convbn.export.torch.save import save_program

        save_program(artefact, source.example_inputs or (), options.output, overwrite=options.force)
        return
    from convbn.export.checkpoints.fused import save_fused

    save_fused(
        source.model,
        artefact,
        report,
        options.output,
        arch=options.arch or (options.input if options.input.startswith("hf-hub:") else None),
        arch_args=tuple(options.arch_arg),
        overwrite=options.force,
    )
