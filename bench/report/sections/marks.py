"""SVG primitives of the report: axes, intervals, boxes, shares, bars, sparklines.

Horizontal places are percentages of the drawing's width, so one drawing serves a phone, a screen and
paper, and its text keeps its size. Labels and numbers stand beside it as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from convbn.common.text import clean, ratio_text, seconds_text

__all__ = ["Axis", "axis_labels", "bar", "box", "interval", "ratio_axis", "shares", "sparkline", "time_axis"]

_MOST_TICKS = 80
_LABELS = 5
_KINDS = {"faster": "good", "slower": "bad"}


class Axis:
    """A linear scale from values to percent of the width.

    Args:
        low: value at the left, after a margin.
        high: value at the right, before a margin.
        margin: share of the range added on either side.
    """

    def __init__(self, low: float, high: float, margin: float = 0.04) -> None:
        room = (high - low) or abs(high) or 1.0
        self.low, self.high = max(0.0, low - room * margin), high + room * margin

    def at(self, value: float) -> float:
        """The place of a value in percent, inside the drawing."""
        share = (value - self.low) / (self.high - self.low)
        return round(2 + 96 * min(max(share, 0.0), 1.0), 2)

    def marks(self, most: int) -> list[float]:
        """Round values for labels, at most that many and one."""
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * nice for nice in (1, 2, 2.5, 5, 10) if unit * nice >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [index * step for index in range(first, last + 1)]


def ratio_axis(rows: Sequence[Mapping[str, Any]], floors: Sequence[float]) -> Axis:
    """An axis for time ratios that shows all intervals, 1, and the noise floors if they are not huge."""
    low = min([1.0, *(row["ratio"]["low"] for row in rows)])
    high = max([1.0, *(row["ratio"]["high"] for row in rows)])
    reach = min(max(floors, default=0.0), 2 * max(1 - low, high - 1))
    return Axis(min(low, 1 - max(reach, 0.01)), max(high, 1 + max(reach, 0.01)))


def time_axis(times: Sequence[Mapping[str, Any]]) -> Axis:
    """An axis for distributions; a long tail is cut off."""
    return Axis(min(time["min"] for time in times), max(_tail(time) for time in times), 0.02)


def axis_labels(axis: Axis, label: Callable[[float], str], *, keep: float | None = None) -> str:
    """The numbers below a drawing; every second one gives way on a phone, but never ``keep``."""
    values = axis.marks(_LABELS)
    kept = 0 if keep is None else min(range(len(values)), key=lambda i: abs(values[i] - keep), default=0)
    parts = []
    for index, value in enumerate(values):
        thin = ' class="thin"' if (index - kept) % 2 else ""
        parts.append(
            f'<text x="{axis.at(value)}%" y="15" text-anchor="middle"{thin}>{escape(label(value))}</text>'
        )
    return f'<svg class="axis" height="20" aria-hidden="true">{"".join(parts)}</svg>'


def interval(
    axis: Axis, ratio: Mapping[str, Any], verdict: str, floor: float, label: str, *, total: bool = False
) -> str:
    """A time ratio with its interval: a line with a diamond, hollow where no difference was detected.

    Args:
        axis: of the column.
        ratio: by the published schema.
        verdict: decides the colour and whether the diamond is filled.
        floor: noise floor, drawn as a band around 1; 0 for none.
        label: what it is, for those who do not see it.
        total: it sums the others up and is drawn larger.

    Returns:
        An ``svg`` element that fills its cell.
    """
    a, m, b = (axis.at(ratio[key]) for key in ("low", "median", "high"))
    parts = [
        _grid(axis),
        _band(axis, floor),
        f'<line class="one" x1="{axis.at(1.0)}%" x2="{axis.at(1.0)}%" y2="100%"/>',
    ]
    kind = _KINDS.get(verdict, "same")
    size = 8.5 if total else 6.5
    parts.append(
        f'<g class="{kind}"><line class="bar" x1="{a}%" x2="{b}%" y1="50%" y2="50%"/>'
        f'<svg x="{m}%" y="50%" overflow="visible">'
        f'<path class="mark" d="M0-{size}L{size} 0L0 {size}L-{size} 0z"/></svg></g>'
    )
    return _svg(f"{clean(label)}: time ratio {ratio_text(ratio)}, {verdict}", "fill", "".join(parts))


def _grid(axis: Axis) -> str:
    lines = "".join(f"M{axis.at(value) * 10:.0f} 0v1" for value in axis.marks(_LABELS))
    return (
        '<svg viewBox="0 0 1000 1" width="100%" height="100%" preserveAspectRatio="none">'
        f'<path class="grid" d="{lines}"/></svg>'
    )


def _band(axis: Axis, floor: float) -> str:
    if floor <= 0:
        return ""
    left, right = axis.at(1 - floor), axis.at(1 + floor)
    return f'<rect class="band" x="{left}%" width="{right - left:.2f}%" height="100%"/>'


def box(axis: Axis, row: Mapping[str, Any], series: int, label: str) -> str:
    """A distribution: box of quartiles, whiskers to minimum and p95, ring at p99, a tick for each block."""
    time = row["latency_seconds"]
    a, q1, m, q3, b = (round(axis.at(time[key]) * 10) for key in ("min", "p25", "median", "p75", "p95"))
    end = axis.at(time["p99"])
    far = (
        f'<svg x="{end}%" y="16" overflow="visible"><path class="fill" d="M0-5l7 5l-7 5z"/></svg>'
        if time["p99"] > axis.high
        else f'<circle class="ring" cx="{end}%" cy="16" r="3"/>'
    )
    grid = "".join(f"M{axis.at(value) * 10:.0f} 0v42" for value in axis.marks(_LABELS))
    body = (
        '<svg viewBox="0 0 1000 42" width="100%" height="42" preserveAspectRatio="none">'
        f'<path class="grid" d="{grid}"/>'
        f'<path class="box" d="M{q1} 7h{max(q3 - q1, 3)}v18H{q1}z"/>'
        f'<path d="M{a} 16H{b}M{a} 11v10M{b} 11v10"/><path class="heavy" d="M{m} 7v18"/>'
        f'<path class="ticks" d="{_ticks(row["block_seconds"], axis)}"/></svg>{far}'
    )
    told = ", ".join(
        f"{key} {seconds_text(time[key])}" for key in ("min", "p25", "median", "p75", "p95", "p99")
    )
    return _svg(f"{clean(label)}: {told}", f"strip s{series}", body, height=42)


def shares(parts: Sequence[tuple[str, int, str]], label: str) -> str:
    """One bar, split by count.

    Args:
        parts: name, count and CSS class of each part, left to right.
        label: what the bar stands for.

    Returns:
        An ``svg`` element.
    """
    total = sum(count for _, count, _ in parts) or 1
    body, x = [], 0.0
    for name, count, kind in parts:
        width = count / total * 100
        body.append(
            f'<rect class="{kind}" x="{x:.2f}%" width="{width:.2f}%" height="18">'
            f"<title>{escape(clean(name))}: {count}</title></rect>"
        )
        x += width
    told = ", ".join(f"{count} {clean(name)}" for name, count, _ in parts)
    return _svg(f"{clean(label)}: {told}", "shares", "".join(body), height=18)


def bar(share: float, label: str) -> str:
    """One bar, as long as its share of the width."""
    return _svg(label, "shares", f'<rect class="f0" width="{100 * share:.2f}%" height="18"/>', height=18)


def sparkline(points: Sequence[tuple[float, float, float] | None], label: str) -> str:
    """A value over time with its interval as a band.

    Args:
        points: low, middle and high of each run, oldest first; None where there is none.
        label: what it is, for those who do not see it.

    Returns:
        An ``svg`` element; higher is more.
    """
    known = [(index, point) for index, point in enumerate(points) if point is not None]
    low, high = min(p[0] for _, p in known), max(p[2] for _, p in known)
    room = max(high - low, 0.02 * high) or 1.0
    base = (low + high - room) / 2
    last = max(len(points) - 1, 1)

    def at(index: int, value: float) -> str:
        return f"{1000 * index / last:.0f} {56 - 52 * (value - base) / room:.1f}"

    runs: list[list[tuple[int, tuple[float, float, float]]]] = []
    for index, point in known:
        if not runs or runs[-1][-1][0] != index - 1:
            runs.append([])
        runs[-1].append((index, point))
    band = "".join(
        "M" + "L".join([*(at(i, p[2]) for i, p in run), *(at(i, p[0]) for i, p in reversed(run))]) + "z"
        for run in runs
        if len(run) > 1
    )
    line = "".join("M" + "L".join(at(i, p[1]) for i, p in run) for run in runs if len(run) > 1)
    dots = "".join(
        f'<circle class="dot" cx="{2 + 96 * i / last:.2f}%" cy="{at(i, p[1]).split()[1]}" r="3"/>'
        for i, p in known
    )
    body = (
        '<svg x="2%" width="96%" height="60" viewBox="0 0 1000 60" preserveAspectRatio="none">'
        f'<path class="area" d="{band}"/><path class="line" d="{line}"/></svg>{dots}'
    )
    return _svg(label, "spark", body, height=60)


def _tail(time: Mapping[str, Any]) -> float:
    # Far enough for the shape; the few slowest of a thousand would squeeze everything else to a line.
    reach = max(time["p75"] + 4 * (time["p75"] - time["p25"]), 1.15 * time["median"])
    return float(min(time["p99"], reach))


def _ticks(blocks: Sequence[float], axis: Axis) -> str:
    every = max(1, math.ceil(len(blocks) / _MOST_TICKS))
    places = sorted(round(axis.at(value) * 10) for value in blocks[::every])
    steps = (after - before for before, after in pairwise(places))
    return f"M{places[0]} 30v8" + "".join(f"m{step}-8v8" for step in steps)


def _svg(label: str, kind: str, body: str, *, height: int | None = None) -> str:
    size = f' height="{height}"' if height else ""
    return f'<svg class="{kind}" role="img" aria-label="{escape(clean(label, 300))}"{size}>{body}</svg>'
