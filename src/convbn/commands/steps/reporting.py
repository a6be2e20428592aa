"""From a result to its reports and gates, for the verbs that measure and those that read stored results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.bench.results.comparisons import SELF_FUSED, case_label
from convbn.commands.steps.console import Console
from convbn.commands.steps.shared import write_json, write_text
from convbn.errors import CheckFailedError, FileAccessError, UsageError

if TYPE_CHECKING:
    from convbn.bench.gates.judge import Gate, GateOutcome

__all__ = [
    "GateFailedError",
    "GatePlan",
    "append_summary",
    "deliver",
    "finish",
    "judged",
    "plan",
    "require_measurements",
]

#: GitHub takes 1 MiB a step.
_SUMMARY_BYTES = 1_000_000
_LEAST_SUMMARY = 2_000


class GateFailedError(CheckFailedError):
    """A gate of ``--fail-if`` or ``--baseline`` failed."""


@dataclass(frozen=True)
class GatePlan:
    """What the command line asks for, checked before anything is measured."""

    gates: tuple[Gate, ...]
    baseline: Mapping[str, Any] | None


def plan(options: argparse.Namespace, environment: Mapping[str, Any] | None = None) -> GatePlan:
    """Read gates and the baseline now, so that no measurement is lost to them later.

    Args:
        options: with those of :func:`convbn.commands.options.report.add_report_arguments`.
        environment: that of the result; None for that of this machine.

    Returns:
        The gates and the baseline.

    Raises:
        UsageError: a condition cannot be read.
        ConvBNError: the baseline cannot be used.
    """
    from convbn.bench.gates.judge import gates_from

    if options.baseline_any_machine and options.baseline is None:
        raise UsageError("--baseline-any-machine says nothing without --baseline")
    gates = gates_from(
        options.fail_if, baseline=options.baseline is not None, allow_missing=options.allow_not_measured
    )
    return GatePlan(gates, None if options.baseline is None else _baseline(options, environment))


def _baseline(options: argparse.Namespace, environment: Mapping[str, Any] | None) -> Mapping[str, Any]:
    from convbn.bench.results.compare import check_machines
    from convbn.bench.results.environment import describe_environment
    from convbn.bench.results.read import read_result

    baseline = read_result(options.baseline)
    if not options.baseline_any_machine:
        here = describe_environment() if environment is None else environment
        check_machines(baseline["environment"], here, source=options.baseline, way="--baseline-any-machine")
    return baseline


def judged(
    result: Mapping[str, Any], asked: GatePlan, measure_again: Callable[[Sequence[str]], Mapping[str, Any]]
) -> tuple[GateOutcome, ...]:
    """Judge the gates; a failure that a second run could take back is measured again.

    Args:
        result: by the published schema.
        asked: the gates.
        measure_again: from the names of runtimes to a second result.

    Returns:
        What the gates said.
    """
    from convbn.bench.gates.judge import confirmed, judge, unconfirmed

    first = judge(result, asked.gates, baseline=asked.baseline, references=(SELF_FUSED,))
    failures = unconfirmed(first)
    if not failures:
        return first
    second = measure_again(list(dict.fromkeys(outcome.runtime for outcome in failures)))
    return confirmed(first, judge(second, asked.gates, baseline=asked.baseline, references=(SELF_FUSED,)))


def deliver(
    result: Mapping[str, Any], outcomes: Sequence[GateOutcome], options: argparse.Namespace, console: Console
) -> None:
    """Write every report that was asked for, and the table to the console."""
    from convbn.bench.report.document import document

    gates = [outcome.to_dict() for outcome in outcomes]
    console.document(document(result, gates))
    if options.markdown is not None:
        from convbn.bench.report import markdown

        write_text(options.markdown, markdown.render(result, gates), overwrite=options.force)
    if options.step_summary:
        from convbn.bench.report import markdown

        append_summary(
            Path(options.step_summary), lambda room: markdown.render(result, gates, most_bytes=room)
        )
    if options.junit is not None:
        from convbn.bench.report import junit

        _write(options.junit, junit.render(result, gates), options, console)
    if options.html is not None:
        from convbn.bench.report import html

        _write(options.html, html.render(result, gates), options, console)
    for target, shape in ((options.github_benchmark, "github"), (options.bencher, "bencher")):
        if target is not None:
            from convbn.bench.report import tracking

            make: Callable[[Mapping[str, Any]], Any] = getattr(tracking, shape)
            write_json(target, make(result), overwrite=options.force)
            console.written(target)


def _write(path: str, text: str, options: argparse.Namespace, console: Console) -> None:
    write_text(path, text, overwrite=options.force)
    console.written(path)


def append_summary(path: Path, rendered: Callable[[int], str]) -> None:
    """Append Markdown to GitHub's summary of a step.

    Args:
        path: of the file.
        rendered: makes Markdown of at most so many bytes.

    Raises:
        FileAccessError: it is full, or cannot be written.
    """
    try:
        room = _SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
        if room < _LEAST_SUMMARY:
            raise FileAccessError(
                "the step summary is full", source=path, hint="give this step a summary of its own"
            )
        text = rendered(room)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")
    except OSError as error:
        raise FileAccessError(
            f"cannot append to it: {error.strerror}", source=path, hint="--step-summary takes a file"
        ) from error


def require_measurements(result: Mapping[str, Any], source: str, runtimes: Sequence[str] = ()) -> None:
    """A run that measured nothing of what it was asked for has not done what it was for.

    Args:
        result: by the published schema.
        source: what errors name.
        runtimes: those that were asked for by name.

    Raises:
        CheckFailedError: nothing, a side of a model at one batch size, precision and number of threads, or one of the
            runtimes was measured nowhere.
    """
    asked: dict[str, list[Mapping[str, Any]]] = {"nothing was measured": _rows(result)}
    for case in result["cases"]:
        for row in case["rows"]:
            if row["side"] != SELF_FUSED:
                label = f"{row['side']} of {case_label(result, case)}"
                asked.setdefault(f"{label} was measured nowhere", []).append(row)
            if row["runtime"] in runtimes:
                asked.setdefault(f"nothing was measured in {row['runtime']}", []).append(row)
    for told, rows in asked.items():
        if all(row["status"] != "measured" for row in rows):
            raise CheckFailedError(
                f"{told}; {rows[0]['runtime']}: {rows[0]['reason']}",
                source=source,
                hint="--allow-not-measured takes that as an answer",
            )


def _rows(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for case in result["cases"] for row in case["rows"]]


def finish(result: Mapping[str, Any], outcomes: Sequence[GateOutcome]) -> int:
    """The exit code: 1 where outputs differ.

    Raises:
        GateFailedError: a gate failed.
    """
    failing = [outcome for outcome in outcomes if outcome.fails]
    if failing:
        more = f" (and {len(failing) - 1} more)" if len(failing) > 1 else ""
        hint = None
        if any(outcome.status == "not judged" for outcome in failing):
            hint = "--allow-not-measured skips what was not measured"
        raise GateFailedError(f"{failing[0].sentence}{more}", source="gate", hint=hint)
    rows = _rows(result)
    return int(any(row["equality"] is not None and row["equality"]["status"] == "different" for row in rows))
