"""A verb over many files: each by itself in a pool of processes, then one table, one JSON and the worst exit code."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convbn.commands.many import reports
from convbn.commands.many.files import Item, found, paired, with_targets
from convbn.commands.many.progress import Progress
from convbn.commands.options.precision import check_precision
from convbn.commands.steps.shared import console_of, write_json
from convbn.commands.steps.targets import check_targets
from convbn.common.document import terminal
from convbn.common.text import printable
from convbn.errors import FileAccessError, UsageError
from convbn.export.loading.remote import is_url
from convbn.export.onnx_io.locations import stored_bytes
from convbn.pipeline.outcome import exit_code
from convbn.pipeline.runners.pool import run_steps
from convbn.pipeline.runners.workers import LocalRunner
from convbn.pipeline.step import Step, peak_memory

__all__ = ["expand_bench", "run"]

_LISTED = 5


def run(arguments: Sequence[str], options: argparse.Namespace) -> int:
    """Do it for each; one that fails costs only itself.

    Args:
        arguments: the command line.
        options: what it was parsed to.

    Returns:
        The worst exit code of all.
    """
    items = _items(options)
    _check_reports(items, options)
    begun, created = time.monotonic(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    console = console_of(options)
    steps = [_step(arguments, item, options) for item in items]
    with LocalRunner(options.workers) as runner, Progress(len(steps), quiet=options.quiet) as progress:
        ran = run_steps(steps, runner, on_event=progress)
    seconds = time.monotonic() - begun
    name = f"{options.verb} {_given(options)}"
    console.say(terminal.rendered(reports.document(name, seconds, ran.outcomes)).rstrip("\n"))
    write_json(options.json, reports.result_of(name, created, seconds, ran.outcomes))
    if ran.stopped is not None:
        raise ran.stopped
    return exit_code(ran.outcomes)


def expand_bench(options: argparse.Namespace) -> int:
    """For ``bench``: name the files themselves, each to be measured against its folded self.

    They are measured in one process after the other's end, as a busy neighbour spoils figures. Those that cannot be
    opened are said now and left out.

    Returns:
        The exit code for what was left out.
    """
    from convbn.commands.steps.shared import load_options
    from convbn.errors import ConvBNError
    from convbn.export.loading.open import open_model_or_engine

    good, worst = [], 0
    for item in found((options.input, *options.others), options):
        try:
            open_model_or_engine(
                item.path, load_options(options), options.trust_engine, light=True, hashed=False
            )
            good.append(item.path)
        except ConvBNError as error:
            sys.stderr.write(f"convbn: {printable(str(error))}\n")
            worst = max(worst, error.exit_code)
    if not good:
        raise UsageError("none of these files can be measured", source=_given(options))
    options.input, options.others, options.each = good[0], good[1:], True
    return worst


def _items(options: argparse.Namespace) -> list[Item]:
    """The files with their targets, held against each other before any work."""
    if options.verb == "verify":
        return paired(options.reference, options.candidate, options)
    items = found((options.input, *options.others), options)
    if options.verb == "inspect":
        return items
    items = with_targets(items, options)
    if is_url(options.output):
        return items  # each looks for itself before it begins
    there = [item.target for item in items if item.target is not None and os.path.lexists(item.target)]
    if there and not options.force:
        listed = ", ".join(there[:_LISTED]) + (f" and {len(there) - _LISTED} more" if there[_LISTED:] else "")
        raise FileAccessError("already exist; use --force to replace them", source=listed)
    for item in items:
        narrowed = argparse.Namespace(
            **{**vars(options), "input": item.path, "others": [], "output": item.target}
        )
        narrowed.json = None
        Path(str(item.target)).parent.mkdir(parents=True, exist_ok=True)
        check_targets(narrowed)
        if options.verb == "export":
            check_precision(narrowed)
    return items


def _check_reports(items: Sequence[Item], options: argparse.Namespace) -> None:
    """No report takes the place of one of the models, or of what is made of them."""
    read = [path for item in items for path in (item.path, item.other) if path and os.path.isfile(path)]
    single = dict.fromkeys(("input", "reference", "candidate", "output"))
    written = [item.target for item in items if item.target is not None]
    check_targets(
        argparse.Namespace(
            **{**vars(options), **single, "verb": "inspect", "others": read, "targets": written}
        )
    )


def _step(arguments: Sequence[str], item: Item, options: argparse.Namespace) -> Step:
    given: dict[str, Any] = {"quiet": True}
    if options.verb == "verify":
        given |= {"reference": item.path, "candidate": item.other}
    else:
        given |= {"input": item.path, "others": []}
    if item.target is not None:
        given["output"] = item.target
    size = _bytes(item.path) + (0 if item.other is None else _bytes(item.other))
    return Step(
        item.name,
        options.verb,
        item.name,
        "convbn.commands.many.work:one",
        {"arguments": list(arguments), "given": given},
        memory=peak_memory(size),
    )


def _bytes(path: str) -> int:
    try:
        return stored_bytes(path)
    except FileAccessError:
        return 0  # which the step says


def _given(options: argparse.Namespace) -> str:
    if options.verb == "verify":
        return f"{options.reference} {options.candidate}"
    return " ".join((options.input, *options.others))
