"""Options of the verbs that write reports and judge gates; nothing heavy is imported here."""

from __future__ import annotations

import argparse

__all__ = ["add_history_verbs", "add_report_arguments"]


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


def add_history_verbs(
    report: argparse.ArgumentParser, compare: argparse.ArgumentParser, history: argparse.ArgumentParser
) -> None:
    """The verbs that read stored results."""
    report.add_argument("result", metavar="RESULT", help="JSON file of convbn bench --json")
    add_report_arguments(report)
    compare.add_argument("before", metavar="BEFORE", help="JSON file of convbn bench --json")
    compare.add_argument("after", metavar="AFTER", help="another one, with the same models")
    compare.add_argument("--any-machine", action="store_true", help="also if the machines differ")
    compare.add_argument("--markdown", metavar="FILE", help="write the comparison as Markdown; - for stdout")
    compare.add_argument("--force", action="store_true", help="replace existing files")
    history.add_argument("folder", metavar="DIR", help="folder with JSON files of convbn bench --json")
    history.add_argument("-o", "--output", metavar="PAGE", required=True, help="HTML file to write")
    history.add_argument("--force", action="store_true", help="replace an existing file")
