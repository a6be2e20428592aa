"""Options for many models: of verbs over folders, patterns and lists of files, and of ``convbn run``."""

from __future__ import annotations

import argparse

from convbn.commands.options.parsing import whole

__all__ = ["add_many_arguments", "add_run_arguments"]


def add_many_arguments(verb: argparse.ArgumentParser, *, more: bool = True, writes: bool = False) -> None:
    """Let a verb take many models.

    Args:
        verb: its parser, which has its first model.
        more: whether further ones may be named; ``verify`` takes two folders.
        writes: whether it writes a file for each.
    """
    if more:
        verb.add_argument(
            "others", metavar="IN", nargs="*", help="more models; each may be a folder or a 'pattern'"
        )
    verb.add_argument("--workers", type=whole(1), metavar="N", help="of many models, how many at once")
    if writes:
        verb.add_argument(
            "--suffix", metavar=".S", help="of many models, what files in the folder OUT end in"
        )


def add_run_arguments(run: argparse.ArgumentParser) -> None:
    """Which plan, where it runs, and where its reports go."""
    add = run.add_argument
    add("plan", metavar="PLAN", nargs="?", help="TOML file (docs/scale.md)")
    add("--init", action="store_true", help="write a plan with every key explained")
    add("--list", action="store_true", help="say what would run and why, and run nothing")
    add("--store", metavar="DIR", help="folder for results of steps, in place of the plan's")
    add("--workers", type=whole(1), metavar="N", help="processes at once")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster: its address, auto, or local")
    add("--force", action="store_true", help="replace files that no run of the plan wrote")
    add("--html", metavar="FILE", help="one offline HTML page")
    add("--markdown", metavar="FILE", help="pull request comment; - for stdout")
    add("--step-summary", metavar="FILE", help="append Markdown; nowhere if FILE is empty")
    add("--junit", metavar="FILE", help="steps as JUnit XML")
