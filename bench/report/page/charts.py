"""Latency distributions as drawings, one for each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convbn.bench.report.page import marks
from convbn.bench.report.page.elements import esc, section
from convbn.bench.results.comparisons import measured
from convbn.common.text import seconds_text

__all__ = ["HOW_TO_READ", "charts", "latencies"]

_MOST_RUNTIMES = 12
_MOST_STRIPS = 8
_SERIES = 4
HOW_TO_READ = (
    "Box: the middle half of all inferences, with the median. Whiskers: minimum and 95th percentile. Ring: 99th "
    "percentile (a triangle at the edge if it lies beyond). Ticks below: the mean of each block."
)


def latencies(result: Mapping[str, Any], limit: int) -> str:
    """The distributions of one model; of several they stand with each model."""
    if len(result["cases"]) > 1:
        return ""
    drawn = charts(result["cases"][0], limit)
    return section("Latency distributions", HOW_TO_READ, drawn) if drawn else ""


def charts(case: Mapping[str, Any], limit: int) -> str:
    """A drawing for each runtime in which something was measured."""
    names = [side["name"] for side in case["sides"]]
    drawn = []
    for control in case["runtimes"][: min(limit, _MOST_RUNTIMES)]:
        rows = [r for r in case["rows"] if r["runtime"] == control["runtime"] and measured(r)]
        if rows:
            drawn.append(_chart(rows[:_MOST_STRIPS], names))
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _chart(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    axis = marks.time_axis([row["latency_seconds"] for row in rows])
    strips = []
    for row in rows:
        time = row["latency_seconds"]
        drawing = marks.box(axis, row, _series(names, row["side"]), f"{row['side']} in {row['runtime']}")
        strips.append(
            f'<div class="strip-row"><p><strong>{esc(row["side"], 60)}</strong> <span>median '
            f"{seconds_text(time['median'])} · p99 {seconds_text(time['p99'])}</span></p>{drawing}</div>"
        )
    scale, unit = next((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (0, "ns")) if axis.high >= s)
    labels = marks.axis_labels(axis, lambda value: f"{value / (scale or 1e-9):.5g} {unit}")
    return (
        f'<figure class="card strips"><figcaption class="mono">{esc(rows[0]["runtime"])}</figcaption>'
        f"{''.join(strips)}{labels}</figure>"
    )


def _series(names: Sequence[str], side: str) -> int:
    index = names.index(side) if side in names else len(names)
    return 0 if index == 0 else 1 + (index - 1) % _SERIES
