"""Latency distributions as drawings, one for each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

from convbn.bench.report.sections import marks
from convbn.bench.results.comparisons import measured
from convbn.common.document.model import Picture
from convbn.common.text import clean, seconds_text

__all__ = ["HOW_TO_READ", "charts"]

_MOST_RUNTIMES = 12
_MOST_STRIPS = 8
_SERIES = 4
HOW_TO_READ = (
    "Box: the middle half of all inferences, with the median. Whiskers: minimum and 95th percentile. Ring: 99th "
    "percentile (a triangle at the edge if it lies beyond). Ticks below: the mean of each block."
)


def charts(case: Mapping[str, Any]) -> list[Picture]:
    """A drawing for each runtime in which something was measured."""
    names = [side["name"] for side in case["sides"]]
    shown = []
    for control in case["runtimes"][:_MOST_RUNTIMES]:
        rows = [r for r in case["rows"] if r["runtime"] == control["runtime"] and measured(r)]
        if rows:
            shown.append(rows[:_MOST_STRIPS])
    if not shown:
        return []
    return [Picture(cache(lambda: "".join(_chart(rows, names) for rows in shown)), kind="charts")]


def _chart(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    axis = marks.time_axis([row["latency_seconds"] for row in rows])
    strips = []
    for row in rows:
        time = row["latency_seconds"]
        drawing = marks.box(axis, row, _series(names, row["side"]), f"{row['side']} in {row['runtime']}")
        strips.append(
            f'<div class="strip-row"><p><strong>{escape(clean(row["side"], 60))}</strong> <span>median '
            f"{seconds_text(time['median'])} · p99 {seconds_text(time['p99'])}</span></p>{drawing}</div>"
        )
    scale, unit = next((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (0, "ns")) if axis.high >= s)
    labels = marks.axis_labels(axis, lambda value: f"{value / (scale or 1e-9):.5g} {unit}")
    return (
        f'<div class="card strips"><p class="mono">{escape(clean(rows[0]["runtime"]))}</p>'
        f"{''.join(strips)}{labels}</div>"
    )


def _series(names: Sequence[str], side: str) -> int:
    index = names.index(side) if side in names else len(names)
    return 0 if index == 0 else 1 + (index - 1) % _SERIES
