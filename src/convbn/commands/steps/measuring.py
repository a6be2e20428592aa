"""What ``convbn bench`` measures: options into cases, cases into a result."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.commands.steps.shared import load_options
from convbn.errors import UsageError

if TYPE_CHECKING:
    from convbn.bench.cases.study import Grid, NamedModel
    from convbn.bench.measure.options import ProtocolOptions
    from convbn.bench.results.result import BenchResult
    from convbn.commands.steps.console import Console

__all__ = ["measured"]

_PATIENCE = 60.0
"""Seconds for which a bench waits for its turn on the machine: who has it may have been stopped."""
_DISTURBED = {
    "label": "Measured beside",
    "value": "another run of convbn on this machine, which may have disturbed it",
}


def measured(options: argparse.Namespace, console: Console) -> BenchResult:
    """Measure what the command line says, once nothing else of convbn works here; may be called again.

    Args:
        options: of ``convbn bench``.
        console: where the progress is shown.
    """
    from convbn.bench.runtimes.registry import check_runtime
    from convbn.export.precision.precisions import precision_named

    runtimes = tuple(options.runtime.split(",")) if options.runtime else None
    for name in runtimes or ():
        check_runtime(name)
    for name in options.precision.split(",") if options.precision else ():
        precision_named(name)

    from convbn.bench.cases.study import Study
    from convbn.bench.measure.options import Instruments
    from convbn.bench.measure.protocol import measure
    from convbn.commands.steps.inspect_engine import is_engine
    from convbn.export.engines.run.load import require_trust
    from convbn.pipeline.runners.machine import Machine

    for path in (options.input, *options.others):
        if is_engine(path):
            require_trust(path, options.trust_engine)
    study = Study(
        _groups(options), _grid(options), runtimes=runtimes, seed=options.seed, alone=_alone(options)
    )
    with Machine() as machine:
        # A run of a plan has it for its steps that measure.
        alone = getattr(options, "machine_held", False) or machine.wait(
            alone=True, tell=console.waits, most=_PATIENCE
        )
        with console.phase("measuring", " s") as progress:
            result = measure(study, _protocol(options), instruments=Instruments(tell=progress))
    count = len(study.groups)
    title = f"convbn bench {options.input}" if count == 1 else f"convbn bench, {count} models"
    if not alone:
        result = replace(result, extra=(*result.extra, _DISTURBED))
    return replace(result, title=title, command="convbn " + shlex.join(sys.argv[1:]))


def _alone(options: argparse.Namespace) -> bool:
    """Whether IN is measured against nothing: it was asked for, or it is an engine, which cannot be folded."""
    from convbn.commands.steps.inspect_engine import is_engine

    if options.alone and (options.others or options.each):
        raise UsageError("--alone measures IN by itself, and there is more", hint="leave --alone out")
    return bool(options.alone or (not options.others and is_engine(options.input)))


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
    from convbn.bench.cases.study import Grid

    precisions = tuple(options.precision.split(",")) if options.precision else ()
    return Grid(_numbers(options.batch), precisions, _numbers(options.threads))


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


def _groups(options: argparse.Namespace) -> list[list[NamedModel]]:
    """The files, each alone with ``--each``, else those after the first against it."""
    from convbn.bench.cases.study import NamedModel
    from convbn.export.loading.open import open_model_or_engine

    def named(name: str, path: str) -> NamedModel:
        return NamedModel(
            name, partial(open_model_or_engine, path, load_options(options), options.trust_engine)
        )

    paths = [options.input, *options.others]
    stems = [Path(path).stem for path in paths]
    if options.each:
        # Files of one name in several folders are told apart by their paths.
        names = [stem if stems.count(stem) == 1 else path for stem, path in zip(stems, paths, strict=True)]
        return [[named(name, path)] for name, path in zip(names, paths, strict=True)]
    return [[named(stems[0], options.input), *(named(Path(path).name, path) for path in options.others)]]
