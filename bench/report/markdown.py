"""The result as GitHub Markdown: for a pull request comment (under 64 kB) or a step summary (under 1 MiB)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convbn.bench.report.facts import (
    batchnorm_sentence,
    environment_lines,
    equality_entries,
    fold_groups,
    gate_lines,
    noise_floors,
    option_lines,
    sentences,
    title_of,
    total_batchnorms,
    worst_error,
)
from convbn.bench.results.comparisons import case_label, comparisons, measured
from convbn.common.text import clean, number, ratio_text, seconds_text

__all__ = ["COMMENT_BYTES", "escaped", "fitted", "render"]

COMMENT_BYTES = 64_000
"""A little below the 65,536 characters that a comment may have."""

# Written as numbers, these are text in every position: no markup, table cell, link or mathematics.
_SPECIAL = {ord(char): f"&#{ord(char)};" for char in "\\`*_[]<>|&~#!$:\"'@"}
_MOST_LINES = 400


def render(
    result: Mapping[str, Any],
    gates: Sequence[Mapping[str, Any]] = (),
    *,
    most_bytes: int = COMMENT_BYTES,
) -> str:
    """Lay the result out as Markdown.

    Args:
        result: by the published schema (``BenchResult.to_dict()``).
        gates: outcomes (``convbn.bench.gates``) to show with it.
        most_bytes: length of the text in UTF-8; what does not fit is left out, and the text says so.

    Returns:
        Markdown; names cannot break out of their cell, mention people or make links.
    """
    told = [f"- {_name(runtime)} – {escaped(sentence, 600)}" for runtime, sentence in sentences(result)]
    parts = [
        ("the verdict", [f"### {escaped(title_of(result))}", "", *told]),
        ("gates", _gates(gates)),
        ("the table", _table(result)),
        ("notes", _notes(result)),
        (
            "further facts",
            [f"- {escaped(f['label'])}: {escaped(f['value'])}" for f in result.get("extra") or ()],
        ),
        ("where the BatchNorms went", _fold(result)),
        ("the comparisons of outputs", _details("Outputs", _equality(result))),
        ("the environment", _details("Environment and settings", _environment(result))),
    ]
    return fitted(parts, most_bytes)


def fitted(parts: Sequence[tuple[str, Sequence[str]]], most_bytes: int) -> str:
    """Join parts while they fit.

    Args:
        parts: what each is, and its lines. A part that does not fit is shortened if it is a list or a
            table, else left out.
        most_bytes: of the whole in UTF-8.

    Returns:
        The text; its last line says what is missing.
    """
    room = most_bytes - 400  # for the last line
    lines: list[str] = []
    cut = []
    for what, part in parts:
        kept = list(part)
        if _size(kept) > room:
            kept = [] if kept[0] == "<details>" else _shortened(kept, room)
            cut.append(what)
        if kept:
            lines += [*kept, ""]
            room -= _size(kept) + 1
    if cut:
        lines.append(f"*To stay within {most_bytes // 1000} kB, this leaves out some or all of {', '.join(cut)}; "
                     "the JSON result has everything.*")  # fmt: skip
    return "\n".join(lines).strip() + "\n"


def _shortened(lines: Sequence[str], room: int) -> list[str]:
    kept: list[str] = []
    for line in lines:
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return kept


def _size(lines: Sequence[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _gates(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"- {escaped(line, 700)}" for line in gate_lines(gates)[:_MOST_LINES]]


def _table(result: Mapping[str, Any]) -> list[str]:
    several = len(result["cases"]) > 1
    lines = [
        f"| {'model | ' if several else ''}runtime | side | baseline | median | p95 | time ÷ baseline [95 % interval] "
        "| result |",
        f"|{'---|' if several else ''}---|---|--:|--:|--:|--:|---|",
    ]
    for one in comparisons(result):
        row = one.row
        model = f"{_name(case_label(result, one.case))} | " if several else ""
        start = f"| {model}{_name(row['runtime'])} | {_name(row['side'])} |"
        if not measured(row):
            lines.append(f"{start} – | – | – | – | not measured: {escaped(row['reason'], 160)} |")
            continue
        times, base = row["latency_seconds"], one.baseline["latency_seconds"]
        ratio = "–" if row["ratio"] is None else ratio_text(row["ratio"])
        lines.append(
            f"{start} {seconds_text(base['median'])} | {seconds_text(times['median'])} "
            f"| {seconds_text(times['p95'])} | {ratio} | {row['verdict']} |"
        )
    return lines


def _notes(result: Mapping[str, Any]) -> list[str]:
    controls = [control for case in result["cases"] for control in case["runtimes"]]
    floors = noise_floors((control["runtime"], control) for control in controls)
    notes = dict.fromkeys(control["note"] for control in controls if control["note"])
    lines = [
        f"- {_name(name)}: effects below {max(found) * 100:.1f} % are not called differences "
        "(from the baseline against itself)"
        for name, found in floors.items()
    ]
    return [*lines, *(f"- {escaped(note, 400)}." for note in notes)]


def _fold(result: Mapping[str, Any]) -> list[str]:
    total = total_batchnorms(result)
    if total is None:
        return []
    groups = [
        f"- {count} {'folded' if folded else 'kept'}: {escaped(name)}"
        for name, count, folded in fold_groups(total)[:_MOST_LINES]
    ]
    return _details(batchnorm_sentence(total), groups)


def _equality(result: Mapping[str, Any]) -> list[str]:
    return [
        f"- {escaped(where, 260)}: **{equality['status']}** – {escaped(equality['reason'], 300)} "
        f"(largest relative error {number(worst_error(equality))})"
        for where, equality in equality_entries(result)[:_MOST_LINES]
    ]


def _environment(result: Mapping[str, Any]) -> list[str]:
    lines = [*environment_lines(result["environment"]), *option_lines(result)]
    command = [f"- Command: {_name(result['command'], 1000)}"] if result["command"] else []
    return [*command, *(f"- {escaped(label)}: {escaped(value)}" for label, value in lines[:_MOST_LINES])]


def _details(summary: str, lines: Iterable[str]) -> list[str]:
    body = list(lines)
    if not body:
        return []
    return ["<details>", f"<summary>{escaped(summary, 300)}</summary>", "", *body, "", "</details>"]


def _name(value: object, limit: int = 60) -> str:
    # Inside <code>, GitHub neither mentions people nor links issues.
    return f"<code>{escaped(value, limit)}</code>"


def escaped(value: object, limit: int = 120) -> str:
    """Any text, harmless in any place of a Markdown document."""
    return clean(value, limit).translate(_SPECIAL)
