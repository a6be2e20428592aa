"""The options of ``convbn run``."""

from __future__ import annotations

import argparse

__all__ = ["add_run_arguments"]


def add_run_arguments(run: argparse.ArgumentParser) -> None:
    """Which plan, where it runs, and where its reports go."""
    add = run.add_argument
    add("plan", metavar="PLAN", nargs="?", help="TOML file (docs/scale.md)")
    add("--init", action="store_true", help="write a plan with every key explained")
    add("--list", action="store_true", help="say what would run and why, and run nothing")
    add("--store", metavar="DIR", help="folder for results of steps, in place of the plan's")
    add("--workers", type=int, metavar="N", help="processes at once")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster: its address, auto, or local")
    add("--force", action="store_true", help="replace files that no run of the plan wrote")
    add("--html", metavar="FILE", help="one offline HTML page")
    add("--markdown", metavar="FILE", help="pull request comment; - for stdout")
    add("--step-summary", metavar="FILE", help="append Markdown; nowhere if FILE is empty")
    add("--junit", metavar="FILE", help="steps as JUnit XML")
