"""The answer in one line: equal or not, how many BatchNorms went, how fast convbn's side is, whether gates hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convbn.bench.report.facts import (
    equality_entries,
    gate_counts,
    is_reference,
    runtime_label,
    total_batchnorms,
    verdict_words,
    worst_error,
)
from convbn.bench.results.comparisons import comparisons, measured, summaries
from convbn.common.document.model import Banner, Mark
from convbn.common.text import clean, number, plural, seconds_text

__all__ = ["banner", "fold_banner"]

_MOST_RUNTIMES = 3


def banner(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]] = ()) -> Banner:
    """The answer of a measurement.

    Args:
        result: by the published schema of ``convbn bench``.
        gates: outcomes to show with it.
    """
    entries = [entry for _, entry in equality_entries(result, references=False)]
    parts = [*_equality(entries)]
    total = total_batchnorms(result)
    if total is not None:
        parts.append(_folded(total))
    parts += _speed(result)
    failed = any(gate["status"] in ("failed", "not judged") for gate in gates)
    if gates:
        conditions = {gate["gate"] for gate in gates}
        failing = {gate["gate"] for gate in gates if gate["status"] in ("failed", "not judged")}
        held = f"gates {len(conditions - failing)} of {len(conditions)}"
        parts.append(Mark(f"✗ {held}: {gate_counts(gates)}" if failed else held, "bad" if failed else "good"))
    bad = failed or any(entry["status"] == "different" for entry in entries)
    return Banner(parts, _reference(result), "failed" if bad else "")


def fold_banner(report: Mapping[str, Any]) -> Banner:
    """The answer of a fold.

    Args:
        report: by the published schema of ``convbn fuse``.
    """
    verify = report["verify"]
    parts = list(_equality([verify])) if verify["status"] != "not run" else [Mark("not verified", "soft")]
    return Banner([*parts, _folded(report)], kind="failed" if verify["status"] == "different" else "")


def _equality(entries: Sequence[Mapping[str, Any]]) -> Iterator[Mark]:
    if not entries:
        return
    counts = {
        status: sum(entry["status"] == status for entry in entries)
        for status in ("different", "inconclusive")
    }
    for status, count in counts.items():
        if count:
            yield Mark(f"✗ {count} of {plural(len(entries), 'comparison')} {status}", "bad")
            return
    worst = number(worst_error(*entries) or 0.0)
    folds = [fold for entry in entries for fold in (entry.get("proof") or {}).get("folds", ())]
    seen = sum(fold["how"] is not None for fold in folds)
    shown = f"{seen} of {plural(len(folds), 'fold')} and all outputs" if folds else "all outputs"
    if len(entries) > 1:
        shown += f" in {len(entries)} comparisons"
    yield Mark(f"Equal ✓ ({shown}, relative error at most {worst})", "good")


def _folded(fold: Mapping[str, Any]) -> Mark:
    before, after = fold["batchnorm"]["before"], fold["batchnorm"]["after"]
    if not before:
        return Mark("no BatchNorm to fold", "soft")
    return Mark(f"{before - after} of {before} folded", "soft" if after else "strong")


def _speed(result: Mapping[str, Any]) -> Iterator[Mark]:
    """The speed of what convbn made, or of what the user compares; not of what a runtime makes by itself."""
    told: list[tuple[str, str]] = []
    sides: list[str] = []
    for side, runtime, ratio, verdict, noise in _ratios(result):
        if is_reference(side):
            continue
        words = verdict_words(verdict, ratio, noise)
        if verdict in ("faster", "slower"):
            words = f"{1 / ratio['median']:.2f} × as fast"
        named = "" if side in sides[-1:] else f"{clean(side, 40)} "
        sides.append(side)
        told.append((f"{named}{words} in {runtime_label(runtime)}", verdict))
    if told:
        rest = f" and {len(told) - _MOST_RUNTIMES} more" if len(told) > _MOST_RUNTIMES else ""
        verdicts = {verdict for _, verdict in told}
        kind = "bad" if "slower" in verdicts else "good" if "faster" in verdicts else "soft"
        yield Mark(f"{', '.join(text for text, _ in told[:_MOST_RUNTIMES])}{rest}", kind)
        return
    alone = [one for one in comparisons(result) if one.row is one.baseline and measured(one.row)]
    for one in alone[:_MOST_RUNTIMES]:
        time = one.row["latency_seconds"]
        rate = one.row["throughput_per_second"]
        a_second = "" if rate is None else f", {rate:,.1f} a second"
        yield Mark(
            f"{seconds_text(time['median'])}{a_second} in {runtime_label(one.row['runtime'])}", "strong"
        )


def _reference(result: Mapping[str, Any]) -> str:
    told = [
        f"{1 / ratio['median']:.2f} × in {runtime_label(runtime)}"
        for side, runtime, ratio, _, _ in _ratios(result)
        if is_reference(side)
    ]
    return f"For reference, what runtimes fuse by themselves: {', '.join(told)}" if told else ""


def _ratios(result: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], str, float | None]]:
    """Side, runtime, time ratio, verdict and noise floor; over several models, their means."""
    if len(result["cases"]) > 1:
        for one in summaries(result):
            if one.overall is not None:
                yield one.side, one.runtime, one.overall, one.verdict or "", one.noise_floor
        return
    for found in comparisons(result):
        if found.row["ratio"] is not None:
            row = found.row
            yield row["side"], row["runtime"], row["ratio"], row["verdict"], found.control["noise_floor"]
