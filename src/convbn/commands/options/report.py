"""Options of the verbs that write reports and judge gates; nothing heavy is imported here."""

from __future__ import annotations

import argparse

__all__ = [
    "add_compare_arguments",
    "add_history_arguments",
    "add_report_arguments",
    "add_stored_report_arguments",
]


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Where reports go, and when the command fails."""
    reports = parser.add_argument_group("reports")
    add = reports.add_argument
    add("--html", metavar="FILE", help="one offline HTML page")
    add("--markdown", metavar="FILE", help="pull request comment, under 64 kB; - for stdout")
    add("--step-summary", metavar="FILE", help="append Markdown; nowhere if FILE is empty")
    add("--junit", metavar="FILE", help="gates as JUnit XML")
    add("--github-benchmark", metavar="FILE", help="JSON, customSmallerIsBetter")
    add("--bencher", metavar="FILE", help="JSON in the Bencher Metric Format")
    add("--force", action="store_true", help="replace existing files")
    gates = parser.add_argument_group("gates (docs/ci.md)")
    add = gates.add_argument
    add(
        "--fail-if",
        metavar="CONDITION",
        action="append",
        default=[],
        help="as in 'ratio > 1.02'; may be given again",
    )
    add("--baseline", metavar="FILE", help="an earlier result: fail if a side got slower since")
    add("--baseline-any-machine", action="store_true", help="also if it was measured on another machine")
    add(
        "--allow-not-measured",
        action="store_true",
        help="gates and bench take 'not measured' as an answer; else it fails",
    )


def add_stored_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the verb that makes reports of a stored result."""
    parser.add_argument("result", metavar="RESULT", help="JSON file of convbn bench --json")
    add_report_arguments(parser)


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the verb that compares two stored results."""
    parser.add_argument("before", metavar="BEFORE", help="JSON file of convbn bench --json")
    parser.add_argument("after", metavar="AFTER", help="another one, with the same models")
    parser.add_argument("--any-machine", action="store_true", help="also if the machines differ")
    parser.add_argument("--markdown", metavar="FILE", help="write the comparison as Markdown; - for stdout")
    parser.add_argument("--force", action="store_true", help="replace existing files")


def add_history_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the verb that shows all stored results of a folder."""
    parser.add_argument("folder", metavar="DIR", help="folder with JSON files of convbn bench --json")
    parser.add_argument("-o", "--output", metavar="PAGE", required=True, help="HTML file to write")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
