"""The result as GitHub Markdown, for a step summary or a pull request comment (limit there: 64 kB)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from convbn.bench.report.facts import (
    batchnorm_sentence,
    clean,
    environment_lines,
    equality_entries,
    fold_groups,
    measured,
    number,
    ratio_text,
    seconds_text,
    sentences,
    title_of,
)

__all__ = ["render"]

_MOST_ROWS = 60
_MOST_COMPARISONS = 30
# Written as numbers, these are text in every position: no markup, table cell, link or mathematics.
_SPECIAL = {ord(char): f"&#{ord(char)};" for char in "\\`*_[]<>|&~#!$:\"'"}


def render(result: Mapping[str, Any]) -> str:
    """Lay the result out as Markdown.

    Args:
        result: by the published schema (``BenchResult.to_dict()``).

    Returns:
        Markdown under 64 kB; names cannot break out of their cell, mention people or make links.
    """
    lines = [f"### {_text(title_of(result))}", ""]
    told = list(sentences(result))
    lines += [f"- {_name(row['runtime'])} – {_text(sentence, 600)}" for row, sentence in told[:_MOST_ROWS]]
    lines += ["", *_table(result)]
    notes = [
        f"{_name(runtime['runtime'])}: effects below {runtime['noise_floor'] * 100:.1f} % are not called "
        f"differences (the baseline against itself gives {ratio_text(runtime['control'])})."
        for runtime in result["runtimes"][:_MOST_ROWS]
        if runtime["control"] is not None
    ]
    notes += sorted({_text(r["note"], 400) + "." for r in result["runtimes"] if r["note"]})[:_MOST_ROWS]
    lines += ["", *notes]
    lines += ["", *_details("Outputs", _equality(result))]
    if result.get("fold"):
        fold = result["fold"]
        groups = [
            f"- {count} {'folded' if folded else 'kept'}: {_text(name)}"
            for name, count, folded in fold_groups(fold)[:_MOST_ROWS]
        ]
        lines += ["", *_details(batchnorm_sentence(fold), groups)]
    facts = [f"- {_text(fact['label'])}: {_text(fact['value'])}" for fact in (result.get("extra") or ())]
    lines += ["", *facts[:_MOST_ROWS]]
    environment = [
        f"- {_text(label)}: {_text(value)}" for label, value in environment_lines(result["environment"])
    ]
    lines += ["", *_details("Environment", environment[:_MOST_ROWS])]
    return "\n".join(lines).strip() + "\n"


def _table(result: Mapping[str, Any]) -> list[str]:
    lines = [
        "| runtime | model | median | p95 | time ÷ baseline [95 % interval] | n | result |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    rows = result["rows"]
    for row in rows[:_MOST_ROWS]:
        start = f"| {_name(row['runtime'])} | {_name(row['side'])} |"
        if not measured(row):
            lines.append(f"{start} – | – | – | – | not measured |")
            continue
        times = row["latency_seconds"]
        ratio = "–" if row["ratio"] is None else ratio_text(row["ratio"])
        lines.append(
            f"{start} {seconds_text(times['median'])} | {seconds_text(times['p95'])} | {ratio} "
            f"| {times['n']} | {row['verdict']} |"
        )
    if len(rows) > _MOST_ROWS:
        lines += ["", f"{len(rows) - _MOST_ROWS} more rows are in the JSON result."]
    return lines


def _equality(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for what, equality in list(equality_entries(result))[:_MOST_COMPARISONS]:
        worst = max((o["rel_error"] or 0.0 for o in equality["outputs"]), default=None)
        lines.append(
            f"- {_text(what, 260)}: **{equality['status']}** – {_text(equality['reason'], 300)} "
            f"(largest relative error {number(worst)})"
        )
    return lines


def _details(summary: str, lines: Iterable[str]) -> list[str]:
    body = list(lines)
    if not body:
        return []
    return ["<details>", f"<summary>{_text(summary, 300)}</summary>", "", *body, "", "</details>"]


def _name(value: object) -> str:
    # Inside <code>, GitHub neither mentions people nor links issues.
    return f"<code>{_text(value, 60)}</code>"


def _text(value: object, limit: int = 120) -> str:
    return clean(value, limit).translate(_SPECIAL)
