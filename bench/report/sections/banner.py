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
)
from convbn.bench.results.comparisons import comparisons, measured, summaries
from convbn.common.document.model import Banner, Mark
from convbn.common.text import clean, seconds_text
from convbn.fuse.summary import equality_marks, folded_mark

__all__ = ["banner"]

_MOST_RUNTIMES = 3
_KINDS = {"faster": "good", "slower": "bad"}


def banner(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]] = ()) -> Banner:
    """The answer of a measurement.

    Args:
        result: by the published schema of ``convbn bench``.
        gates: outcomes to show with it.
    """
    entries = [entry for _, entry in equality_entries(result, references=False)]
    parts = [*equality_marks(entries)]
    total = total_batchnorms(result)
    if total is not None:
        parts.append(folded_mark(total))
    parts += _speed(result)
    failed = any(gate["status"] in ("failed", "not judged") for gate in gates)
    if gates:
        conditions = {gate["gate"] for gate in gates}
        failing = {gate["gate"] for gate in gates if gate["status"] in ("failed", "not judged")}
        held = f"gates {len(conditions - failing)} of {len(conditions)}"
        parts.append(Mark(f"✗ {held}: {gate_counts(gates)}" if failed else held, "bad" if failed else "good"))
    bad = failed or any(entry["status"] == "different" for entry in entries)
    return Banner(parts, _reference(result), "failed" if bad else "")


def _speed(result: Mapping[str, Any]) -> Iterator[Mark]:
    """The speed of what convbn made, or of what the user compares; not of what a runtime makes by itself."""
    own = [found for found in _ratios(result) if not is_reference(found[0])]
    own.sort(key=lambda found: found[3] != "slower")  # of many, none of these is left out
    last = None
    for side, runtime, ratio, verdict, noise in own[:_MOST_RUNTIMES]:
        words = verdict_words(verdict, ratio, noise)
        if verdict in _KINDS:
            words = f"{1 / ratio['median']:.2f} × as fast"
        elif words.startswith("not proven"):
            words = f"speed {words}"  # behind "Equal ✓" it is not to be taken for the outputs
        named = "" if side == last else f"{clean(side, 40)} "
        last = side
        yield Mark(f"{named}{words} in {runtime_label(runtime)}", _KINDS.get(verdict, "soft"))
    if own:
        if own[_MOST_RUNTIMES:]:
            yield Mark(f"and {len(own) - _MOST_RUNTIMES} more", "soft")
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
