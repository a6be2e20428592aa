"""Charts as inline SVG, drawn for a given width in CSS pixels so that text keeps its size on a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from convbn.bench.report.facts import clean, seconds_text

__all__ = ["distributions", "forest", "stacked_bar"]

_FONT = 13
_CHAR = 7.4  # width of an average character at that size, a little generous
_MOST_TICKS = 120
_ROOMY = 600


def distributions(rows: Sequence[Mapping[str, Any]], colours: Sequence[int], width: int) -> str:
    """Latencies of all sides in one runtime: a box for single inferences, a tick for each block.

    Args:
        rows: measured rows by the published schema.
        colours: index of each row's colour.
        width: of the drawing.

    Returns:
        An ``svg`` element. Box: quartiles, line: median, whiskers: minimum and 95th percentile,
        ring: 99th percentile; ticks below: block means. A long tail is cut off: what lies beyond stands
        at the right edge, the ring as a triangle.
    """
    times = [row["latency_seconds"] for row in rows]
    low, high = min(t["min"] for t in times), max(_tail(t) for t in times)
    axis = _Axis(low, high, width, pad=14)
    step, top = 78, 8
    parts = []
    for index, (row, time, colour) in enumerate(zip(rows, times, colours, strict=True)):
        y = top + index * step
        median = f"median {seconds_text(time['median'])}"
        if width > _ROOMY:
            median += f" · p99 {seconds_text(time['p99'])}"
        name = _fit(row["side"], width - len(median) * _CHAR - 24)
        parts.append(_text(2, y + _FONT, name, weight=600))
        parts.append(_text(width - 2, y + _FONT, median, anchor="end", kind="soft"))
        middle = y + 34
        a, q1, m, q3, b, c = (axis.at(time[key]) for key in ("min", "p25", "median", "p75", "p95", "p99"))
        style = f'style="stroke:var(--s{colour});fill:var(--s{colour})"'
        parts.append(
            f"<g {style}><title>{_quiet(row['side'])}: {_quartiles(time)}</title>"
            f'<path d="M{a} {middle}H{b}M{a} {middle - 5}v10M{b} {middle - 5}v10" stroke-width="1.6"/>'
            f'<rect x="{q1}" y="{middle - 10}" width="{max(q3 - q1, 1.5):.1f}" height="20" rx="3" '
            f'fill-opacity=".28" stroke-width="1.6"/>'
            f'<path d="M{m} {middle - 10}v20" stroke-width="3.4"/>'
            f"{_far_end(c, middle, time['p99'] > axis.high)}"
            f'<path d="{_ticks(row["block_seconds"], axis, middle + 15)}" stroke-width="1.3" '
            f'stroke-opacity=".6"/></g>'
        )
    bottom = top + len(rows) * step
    scale, unit = next((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (0, "ns")) if high >= s)
    grid = axis.grid(top + 20, bottom, lambda value: f"{value / (scale or 1e-9):.5g} {unit}")
    names = ", ".join(_quiet(row["side"]) for row in rows)
    return _svg(
        width, bottom + 26, f"Latency of {names} in {_quiet(rows[0]['runtime'])}", "".join([*grid, *parts])
    )


def forest(
    rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float], colours: Sequence[int], width: int
) -> str:
    """Time ratios with their intervals, a line at 1, and each runtime's noise floor as a band.

    Args:
        rows: measured rows that have a ratio.
        floors: noise floor by runtime.
        colours: index of each row's colour.
        width: of the drawing.

    Returns:
        An ``svg`` element; left of the line is faster. A band that reaches beyond the axis is cut off.
    """
    spread = max(max(abs(row["ratio"]["low"] - 1), abs(row["ratio"]["high"] - 1)) for row in rows)
    spread = max(spread, min(max(floors.values(), default=0.0), 2 * spread), 0.01) * 1.15
    low, high = max(0.0, 1 - spread), 1 + spread
    axis = _Axis(low, high, width, pad=14)
    roomy = width > _ROOMY
    step, top = 58 if roomy else 78, 26
    parts = [
        _text(2, 13, "← faster", kind="soft"),
        _text(width - 2, 13, "slower →", anchor="end", kind="soft"),
    ]
    for index, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        y = top + index * step
        ratio, floor = row["ratio"], floors.get(row["runtime"], 0.0)
        value = f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        label = f"{clean(row['side'])} · {clean(row['runtime'])}"
        room = width - len(value) * _CHAR - 20 if roomy else width
        parts.append(_text(2, y + 14, _fit(label, room), weight=600))
        if roomy:
            parts.append(_text(width - 2, y + 14, value, anchor="end", kind="soft"))
        else:
            parts.append(_text(2, y + 32, value, kind="soft"))
        middle = y + step - 22
        left, right = axis.at(max(low, 1 - floor)), axis.at(min(high, 1 + floor))
        a, m, b = (axis.at(ratio[key]) for key in ("low", "median", "high"))
        style = f'style="stroke:var(--s{colour});fill:var(--s{colour})"'
        parts.append(
            f'<rect class="band" x="{left}" y="{middle - 13}" width="{right - left:.1f}" height="26" rx="3">'
            f"<title>noise floor of {_quiet(row['runtime'])}: ±{floor * 100:.1f} %</title></rect>"
            f"<g {style}><title>{_quiet(label)}: {value}</title>"
            f'<path d="M{a} {middle}H{b}M{a} {middle - 6}v12M{b} {middle - 6}v12" stroke-width="2.2"/>'
            f'<path d="M{m} {middle - 7}l7 7l-7 7l-7-7z" stroke="none"/></g>'
        )
    bottom = top + len(rows) * step
    grid = axis.grid(top + 20, bottom, lambda number: f"{number:.10g}")
    one = axis.at(1.0)
    line = f'<path class="one" d="M{one} {top - 4}V{bottom}" stroke-width="1.4" stroke-dasharray="5 4"/>'
    return _svg(width, bottom + 26, "Time ratios with their intervals", "".join([*grid, line, *parts]))


def stacked_bar(groups: Sequence[tuple[str, int, str]], width: int) -> str:
    """One bar, split by group.

    Args:
        groups: name, count and CSS colour of each part, left to right.
        width: of the drawing.

    Returns:
        An ``svg`` element.
    """
    total = sum(count for _, count, _ in groups)
    parts, x = [], 0.0
    for name, count, colour in groups:
        length = count / total * width
        parts.append(
            f'<rect class="gap" x="{x:.1f}" y="1" width="{length:.1f}" height="30" rx="3" stroke-width="2" '
            f'style="fill:{colour}"><title>{_quiet(name)}: {count}</title></rect>'
        )
        x += length
    label = "; ".join(f"{count} {_quiet(name)}" for name, count, _ in groups)
    return _svg(width, 32, f"BatchNorms: {label}", "".join(parts))


class _Axis:
    """A linear scale from values to pixels."""

    def __init__(self, low: float, high: float, width: int, pad: float) -> None:
        room = (high - low) or high or 1.0
        self.low, self.high = max(0.0, low - room * 0.04), high + room * 0.04
        self.left, self.right = pad, width - pad

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.left + min(max(share, 0.0), 1.0) * (self.right - self.left), 1)

    def grid(self, top: float, bottom: float, label: Any) -> list[str]:
        most = max(2, int((self.right - self.left) // 72))
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * nice for nice in (1, 2, 2.5, 5, 10) if unit * nice >= rough)
        parts = []
        for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            value = index * step
            x = self.at(value)
            parts.append(f'<path class="grid" d="M{x} {top}V{bottom + 4}"/>')
            if 26 <= x <= self.right - 12:  # nearer to the edge it would be cut off
                parts.append(_text(x, bottom + 20, label(value), anchor="middle", kind="soft"))
        return parts


def _tail(time: Mapping[str, Any]) -> float:
    # Far enough for the shape; the few slowest of a thousand would squeeze everything else to a line.
    reach = max(time["p75"] + 4 * (time["p75"] - time["p25"]), 1.15 * time["median"])
    return float(min(time["p99"], reach))


def _far_end(x: float, y: float, beyond: bool) -> str:
    if beyond:
        return f'<path d="M{x} {y - 5}l8 5l-8 5z" stroke="none"/>'
    return f'<circle cx="{x}" cy="{y}" r="3" fill="none" stroke-width="1.6"/>'


def _ticks(blocks: Sequence[float], axis: _Axis, y: float) -> str:
    every = max(1, math.ceil(len(blocks) / _MOST_TICKS))
    return "".join(f"M{axis.at(value)} {y}v8" for value in blocks[::every])


def _quartiles(time: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {seconds_text(time[key])}" for key in ("min", "p25", "median", "p75", "p95", "p99")
    )


def _fit(name: object, room: float) -> str:
    return clean(name, max(4, int(room / _CHAR)))


def _quiet(name: object) -> str:
    return escape(clean(name))


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", kind: str = "", weight: int | None = None
) -> str:
    extra = (f' class="{kind}"' if kind else "") + (f' font-weight="{weight}"' if weight else "")
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{_FONT}"{extra}>{escape(text)}</text>'
    )


def _svg(width: int, height: float, label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{label}">{body}</svg>'
