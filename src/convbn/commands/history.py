"""``convbn history``: a folder of results as one page."""

from __future__ import annotations

import argparse

from convbn.bench.report import trend
from convbn.bench.results.history import read_history
from convbn.commands.steps.console import Console
from convbn.commands.steps.shared import write_text
from convbn.common.text import printable

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Read the folder and write the page."""
    history = read_history(options.folder)
    write_text(options.output, trend.render(history), overwrite=options.force)
    console = Console(quiet=options.quiet)
    for name, reason in history.left_out:
        console.say(f"left out: {printable(name)}: {printable(reason)}")
    console.written(options.output)
    return 0
