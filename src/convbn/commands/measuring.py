"""What ``convbn bench`` measures: options into cases, cases into a result."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.commands.shared import source_options
from convbn.errors import UsageError

if TYPE_CHECKING:
    from convbn.bench.measure.options import ProtocolOptions
    from convbn.bench.results.result import BenchResult
    from convbn.console import Console
    from convbn.grid import Entry, Grid
    from convbn.sides import Subject

__all__ = ["measured"]


def measured(options: argparse.Namespace, console: Console) -> BenchResult:
    """Measure what the command line says; may be called again to measure again.

    Args:
        options: of ``convbn bench``.
        console: where the progress is shown.
    """
    from convbn.bench.measure.protocol import measure_all
    from convbn.bench.runtimes.registry import check_runtime
    from convbn.commands.inspect_engine import is_engine
    from convbn.export.engines.run.load import require_trust
    from convbn.grid import contests
    from convbn.sides import default_runtimes

    runtimes = tuple(options.runtime.split(",")) if options.runtime else None
    for name in runtimes or ():
        check_runtime(name)
    for path in (options.input, *options.others):
        if is_engine(path):
            require_trust(path, options.trust_engine)
    protocol, grid, entries = _protocol(options), _grid(options), _entries(options)
    console.progress("reading and folding")
    cases = contests(entries, grid, runtimes=runtimes, seed=options.seed)
    result = measure_all(
        cases,
        runtimes or (lambda case: default_runtimes(case.sides[0])),
        options=protocol,
        contests_ahead=len(entries) * grid.size,
        progress=console.progress,
        title=f"convbn bench {options.input}"
        if len(entries) == 1
        else f"convbn bench, {len(entries)} models",
        command="convbn " + shlex.join(sys.argv[1:]),
    )
    console.progress("")
    return result


def _protocol(options: argparse.Namespace) -> ProtocolOptions:
    from convbn.bench.measure.options import ProtocolOptions

    usual = ProtocolOptions()
    return ProtocolOptions(
        seed=options.seed,
        budget_seconds=usual.budget_seconds if options.budget is None else options.budget,
        total_seconds=options.total_budget,
        min_blocks=usual.min_blocks if options.blocks is None else min(options.blocks, usual.min_blocks),
        max_blocks=options.blocks,
        l2="flushed" if options.flush_l2 else "warm",
        memory=not options.no_memory,
    )


def _grid(options: argparse.Namespace) -> Grid:
    from convbn.grid import Grid

    precisions = tuple(options.precision.split(",")) if options.precision else ()
    return Grid(_numbers("--batch", options.batch), precisions, _numbers("--threads", options.threads))


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no list of numbers", source=option, hint=f"write {option} 1,8,32"
        ) from error


def _entries(options: argparse.Namespace) -> list[Entry]:
    from convbn.grid import Entry

    paths = [options.input, *options.others]
    stems = [Path(path).stem for path in paths]
    if options.each:
        # Files of one name in several folders are told apart by their paths.
        names = [stem if stems.count(stem) == 1 else path for stem, path in zip(stems, paths, strict=True)]
        return [Entry(name, _opener(path, options)) for name, path in zip(names, paths, strict=True)]
    others = tuple((Path(path).name, _opener(path, options)) for path in options.others)
    return [Entry(stems[0], _opener(options.input, options), others)]


def _opener(path: str, options: argparse.Namespace) -> Callable[[], Subject]:
    return lambda: _opened(path, options)


def _opened(path: str, options: argparse.Namespace) -> Subject:
    from convbn.export.checkpoints.hub import HUB
    from convbn.export.engines.run.load import EngineFile, read_header
    from convbn.export.files.sniff import ArtifactKind, sniff
    from convbn.sides import Subject
    from convbn.sources import open_source

    if not path.startswith(HUB) and sniff(path) is ArtifactKind.ENGINE:
        file = EngineFile(Path(path), options.trust_engine)
        return Subject(None, path=path, engines={read_header(path).runs_in: file})
    source = open_source(path, source_options(options))
    return Subject(
        Path(path) if source.onnx is not None else source.model,
        example_inputs=source.example_inputs,
        input_shapes=source.shapes,
        path=source.path,
        sha256=source.sha256,
        onnx=source.onnx,
        notes=source.notes,
    )
