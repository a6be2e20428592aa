"""``convbn bench``: the original against its folded self, or against files the user names."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from convbn.bench.protocol import ProtocolOptions, measure
from convbn.bench.result import BenchResult
from convbn.bench.runtimes.base import Side
from convbn.commands.shared import console_of, from_source, source_options, write_json, write_text
from convbn.console import Console, printable
from convbn.errors import UsageError
from convbn.sides import default_runtimes, folded_side, onnx_wanted, original_side, other_side
from convbn.sources import Source, open_source

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Measure and report; exit code 1 if some side's outputs differ."""
    from convbn.export.files import check_target

    if options.json == "-" and options.markdown == "-":
        raise UsageError("--json - and --markdown - both want stdout")
    for target in (options.json, options.markdown, options.html):
        if target not in (None, "-"):
            check_target(target, overwrite=options.force)
    console = console_of(options)
    runtimes = tuple(options.runtime.split(",")) if options.runtime else None
    with console.phase("reading"):
        source = open_source(options.input, source_options(options))
    with console.phase("folding"):
        sides, fold = _sides(options, source, runtimes)
    protocol = ProtocolOptions(seed=options.seed, threads=options.threads, input_shapes=source.shapes)
    if options.budget is not None:
        protocol = replace(protocol, budget_seconds=options.budget)
    result = measure(
        sides,
        runtimes or default_runtimes(sides[0]),
        options=protocol,
        progress=console.progress,
        title=f"convbn bench {options.input}",
        command="convbn " + shlex.join(sys.argv[1:]),
        fold=fold,
    )
    _report(result, options, console)
    differ = any(row.equality is not None and row.equality.status == "different" for row in result.rows)
    return 1 if differ else 0


def _sides(
    options: argparse.Namespace, source: Source, runtimes: tuple[str, ...] | None
) -> tuple[tuple[Side, ...], Mapping[str, Any] | None]:
    original = original_side(source.model, source.example_inputs, onnx_wanted=onnx_wanted(runtimes))
    if not options.others:
        folded, report = folded_side(original)
        return (original, folded), from_source(report, source).to_dict()
    others = [other_side(path, i, source.example_inputs) for i, path in enumerate(options.others, start=2)]
    return (original, *others), None


def _report(result: BenchResult, options: argparse.Namespace, console: Console) -> None:
    value = result.to_dict()
    from convbn.bench.report import terminal

    console.progress("")
    console.say(terminal.render(value).rstrip("\n"))
    write_json(options.json, value, overwrite=options.force)
    if options.markdown is not None:
        from convbn.bench.report import markdown

        write_text(options.markdown, markdown.render(value), overwrite=options.force)
    if options.html is not None:
        from convbn.bench.report import html

        write_text(options.html, html.render(value), overwrite=options.force)
        console.say(f"written: {printable(options.html)}")
