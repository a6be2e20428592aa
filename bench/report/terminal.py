"""The result as plain text for a terminal or a log."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from convbn.bench.report.facts import (
    batchnorm_sentence,
    clean,
    equality_entries,
    fold_groups,
    measured,
    ratio_text,
    seconds_text,
    sentences,
    title_of,
)

__all__ = ["render"]

_WIDTH = 100
_NAME = 36
_HEAD = ("runtime", "model", "median", "p95", "time / baseline [interval]", "n")


def render(result: Mapping[str, Any]) -> str:
    """Lay the result out as text.

    Args:
        result: by the published schema (``BenchResult.to_dict()``).

    Returns:
        Lines without colour or control characters, ending in a newline.
    """
    lines = [title_of(result), ""]
    for row, sentence in sentences(result):
        lines += _wrap(f"{clean(row['runtime'], _NAME)}: {sentence}")
    lines += ["", *_table(result["rows"]), ""]
    for runtime in result["runtimes"]:
        lines += _runtime_notes(runtime, result["rows"])
    if result.get("fold"):
        lines += ["", *_fold(result["fold"])]
    for what, equality in equality_entries(result):
        lines += _wrap(f"outputs of {what}: {equality['status']} – {clean(equality['reason'], 300)}")
    for fact in result.get("extra") or ():
        lines += _wrap(f"{clean(fact['label'])}: {clean(fact['value'])}")
    environment = result["environment"]
    lines += ["", *_wrap(f"{clean(environment['cpu'] or 'unknown CPU')}, {clean(environment['os'])}")]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [_HEAD]
    for row in rows:
        names = (clean(row["runtime"], _NAME), clean(row["side"], _NAME))
        if not measured(row):
            cells.append((*names, "–", "–", "not measured", "–"))
            continue
        times = row["latency_seconds"]
        ratio = "baseline" if row["ratio"] is None else ratio_text(row["ratio"])
        cells.append(
            (*names, seconds_text(times["median"]), seconds_text(times["p95"]), ratio, str(times["n"]))
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return [lines[0], "  ".join("─" * width for width in widths), *lines[1:]]


def _runtime_notes(runtime: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    name = clean(runtime["runtime"], _NAME)
    lines: list[str] = []
    if runtime["control"] is not None:
        lines += _wrap(
            f"{name}: the baseline against itself gives {ratio_text(runtime['control'])}, "
            f"so effects below {runtime['noise_floor'] * 100:.1f} % are not called differences"
        )
    if any(row["warm"] is False for row in rows if row["runtime"] == runtime["runtime"]):
        lines += _wrap(f"{name}: times were still moving when the warm-up ended; the machine may be busy")
    if runtime["note"]:
        lines += _wrap(f"{name}: {clean(runtime['note'], 400)}")
    return lines


def _fold(fold: Mapping[str, Any]) -> list[str]:
    lines = [batchnorm_sentence(fold)]
    for name, count, folded in fold_groups(fold):
        lines.append(f"  {count:>5}  {'folded' if folded else 'kept'}: {name}")
    return lines


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
