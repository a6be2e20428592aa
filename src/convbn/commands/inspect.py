"""``convbn inspect``: what a fold would do, or what is known of an engine."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from convbn.commands.steps.console import Console
from convbn.commands.steps.inspect_engine import is_engine, run_on_engine
from convbn.commands.steps.shared import (
    console_of,
    fuse_options,
    load_options,
    refuse_warnings,
    write_json,
)
from convbn.common.document.model import Mark, Text
from convbn.errors import BadInputError, UsageError
from convbn.export.loading.open import open_source
from convbn.fuse.fold import fold
from convbn.fuse.report import Report
from convbn.fuse.summary import fold_banner, folds_listed, normalisations_sentence

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Plan and report; nothing is written."""
    paths = [path for given in (options.input, *options.others) for path in _models(given)]
    if paths == [options.input] and is_engine(options.input):
        return run_on_engine(options)
    if options.trust_engine:
        raise UsageError("--trust-engine is for engines", source=options.input)
    console = console_of(options)
    reports = [_inspected(path, options, console, several=len(paths) > 1) for path in paths]
    if paths == [options.input]:
        write_json(options.json, reports[0].to_dict())
    else:
        write_json(options.json, {"schema_version": "1", "reports": [report.to_dict() for report in reports]})
    for report in reports:
        refuse_warnings(options, report)
    return 0


def _models(given: str) -> list[str]:
    """The ONNX models of a folder, or the path itself."""
    if not Path(given).is_dir():
        return [given]
    found = sorted(str(path) for path in Path(given).rglob("*.onnx") if path.is_file())
    if not found:
        raise BadInputError("holds no .onnx file", source=given, hint="name the models themselves")
    return found


def _inspected(path: str, options: argparse.Namespace, console: Console, *, several: bool) -> Report:
    with console.phase(f"reading {path}"):
        source = open_source(path, load_options(options), light=True, hashed=options.json is not None)
    with console.phase("planning"):
        folding = fold(
            source.model,
            source.example_inputs,
            options=fuse_options(options, verify=False),
            owned=True,
            read=None if source.opened is None else source.opened.files.read,
        )
    nothing = {"status": "not run", "reason": "inspect writes nothing, so there is nothing to compare"}
    report = replace(source.named_in(folding.report), verify=nothing)
    if several:
        told = fold_banner(report.to_dict(), would=True).parts[-1]
        others = normalisations_sentence(report.normalisations)
        console.show(Text((Mark(f"{path}: ", "strong"), told, f"; {others}" if others else "")))
        return report
    console.report(report, would=True)
    if report.folded:
        console.show(folds_listed(report.to_dict(), everything=options.all))
    return report
