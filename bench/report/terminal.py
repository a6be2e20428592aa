"""The result as plain text for a terminal or a log."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convbn.bench.report.facts import (
    batchnorm_sentence,
    equality_entries,
    fold_groups,
    gate_lines,
    sentences,
    title_of,
    total_batchnorms,
    worst_error,
)
from convbn.bench.results.comparisons import case_label, measured
from convbn.common.tables import columns
from convbn.common.text import clean, number, ratio_text, seconds_text

__all__ = ["aligned", "render", "wrap"]

_WIDTH = 100
_NAME = 36
_HEAD = ("runtime", "side", "median", "p95", "time / baseline [interval]", "n")
_MOST_OPEN = 12


def render(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]] = ()) -> str:
    """Lay the result out as text.

    Args:
        result: by the published schema (``BenchResult.to_dict()``).
        gates: outcomes (``convbn.bench.gates``) to show with it.

    Returns:
        Lines without colour or control characters, ending in a newline.
    """
    lines = [title_of(result), ""]
    for runtime, sentence in sentences(result):
        lines += wrap(f"{clean(runtime, _NAME)}: {sentence}")
    for case in result["cases"]:
        label = [case_label(result, case)] if len(result["cases"]) > 1 else []
        lines += ["", *label, *_table(case["rows"])]
    lines += ["", *_notes(result)]
    total = total_batchnorms(result)
    if total:
        lines += ["", *_fold(total)]
    lines += _outputs(result)
    for fact in result.get("extra") or ():
        lines += wrap(f"{clean(fact['label'])}: {clean(fact['value'])}")
    for told in gate_lines(gates):
        lines += wrap(told)
    environment = result["environment"]
    lines += ["", *wrap(f"{clean(environment['cpu'] or 'unknown CPU')}, {clean(environment['os'])}")]
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
    return aligned(cells, left=2)


def aligned(cells: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """A table with a line below its head; the first ``left`` columns are text, the others numbers."""
    rule = ["─" * max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return columns([cells[0], rule, *cells[1:]], left=left)


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    """What each runtime calls a difference, once a runtime."""
    told: set[str] = set()
    for case in result["cases"]:
        for control in case["runtimes"]:
            name = clean(control["runtime"], _NAME)
            moving = any(row["warm"] is False for row in case["rows"] if row["runtime"] == control["runtime"])
            if control["control"] is not None and len(result["cases"]) == 1:
                yield from wrap(
                    f"{name}: the baseline against itself gives {ratio_text(control['control'])}, "
                    f"so effects below {control['noise_floor'] * 100:.1f} % are not called differences"
                )
            if moving:
                where = f" ({case_label(result, case)})" if len(result["cases"]) > 1 else ""
                yield from wrap(
                    f"{name}{where}: times were still moving when the warm-up ended; the machine may be busy"
                )
            if control["note"] and name not in told:
                yield from wrap(f"{name}: {clean(control['note'], 400)}")
            told.add(name)
    if len(result["cases"]) > 1:
        floors = [c["noise_floor"] for case in result["cases"] for c in case["runtimes"] if c["control"]]
        if floors:
            yield from wrap(
                f"effects below the noise floor are not called differences; it is {min(floors) * 100:.1f} % "
                f"to {max(floors) * 100:.1f} % here"
            )


def _fold(fold: Mapping[str, Any]) -> list[str]:
    lines = [batchnorm_sentence(fold)]
    for name, count, folded in fold_groups(fold):
        lines.append(f"  {count:>5}  {'folded' if folded else 'kept'}: {name}")
    return lines


def _outputs(result: Mapping[str, Any]) -> list[str]:
    found = equality_entries(result)
    if len(found) > _MOST_OPEN and all(entry["status"] == "equal" for _, entry in found):
        worst = worst_error(*(entry for _, entry in found)) or 0.0
        return wrap(f"outputs: equal in all {len(found)} comparisons, largest relative error {number(worst)}")
    lines = []
    for where, entry in found:
        lines += wrap(f"outputs of {where}: {entry['status']} – {clean(entry['reason'], 300)}")
    return lines


def wrap(text: str) -> list[str]:
    """A paragraph as lines, continued with an indent."""
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
