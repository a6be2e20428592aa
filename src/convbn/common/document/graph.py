"""A graph as a compact drawing (SVG): nodes in running order from left to right in rows, parallel branches on lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

from convbn.common.text import clean

__all__ = ["DrawnNode", "drawn"]

_COLUMNS, _STEP, _LANE = 50, 20, 15
_WIDTH = _COLUMNS * _STEP
_MOST_LANES = 12
"""More branches than this are drawn on top of each other."""


class DrawnNode(NamedTuple):
    """A node: what a pointer on it says, its class in the stylesheet, and whether it is drawn large."""

    title: str
    kind: str
    large: bool


def drawn(nodes: Sequence[DrawnNode], edges: Sequence[Sequence[int]], label: str) -> str:
    """Draw a graph.

    Args:
        nodes: in an order in which they can run.
        edges: pairs of places in ``nodes``; those that lead back are left out.
        label: what it shows, for those who do not see it.

    Returns:
        An ``svg`` element without script, as wide as its place.
    """
    # A file whose nodes are not sorted, or that is no graph at all, has edges against the order: they are not drawn.
    edges = [(start, end) for start, end in edges if start < end]
    readers: dict[int, list[int]] = {}
    for start, end in edges:
        readers.setdefault(start, []).append(end)
    lanes = _lanes(len(nodes), edges, readers)
    rows = [list(row) for _, row in groupby(range(len(nodes)), key=lambda i: i // _COLUMNS)]
    tops, bottom = [], 0
    for row in rows:
        crossing = [lanes[a] for a, ends in readers.items() if a <= row[-1] and max(ends) >= row[0]]
        tops.append(bottom)
        bottom += (max([lanes[i] for i in row] + crossing, default=0) + 1) * _LANE + _LANE

    def at(index: int) -> tuple[float, float]:
        row, column = divmod(index, _COLUMNS)
        return column * _STEP + _STEP / 2, tops[row] + lanes[index] * _LANE + _LANE

    lines = "".join(_line(start, sorted(ends), at, tops, lanes[start]) for start, ends in readers.items())
    marks = "".join(_node(node, *at(index)) for index, node in enumerate(nodes))
    return (
        f'<svg class="network" role="img" aria-label="{escape(clean(label, 300))}" '
        f'viewBox="0 0 {_WIDTH} {bottom + 4}"><path class="edges" d="{lines}"/>{marks}</svg>'
    )


def _lanes(count: int, edges: Sequence[Sequence[int]], readers: dict[int, list[int]]) -> list[int]:
    """A lane for each node: that of a value which it is the last to read, else the first that is free."""
    sources: dict[int, list[int]] = {}
    for start, end in edges:
        sources.setdefault(end, []).append(start)
    lanes: list[int] = []
    busy: dict[int, int] = {}  # lane → the last node that reads what is on it
    for index in range(count):
        ending = [lanes[one] for one in sources.get(index, ()) if max(readers[one]) == index]
        for open_lane in [one for one, last in busy.items() if last <= index]:
            del busy[open_lane]
        free = (one for one in range(count + 1) if one not in busy)
        lane = min(next((one for one in sorted(ending) if one not in busy), next(free)), _MOST_LANES)
        busy[lane] = max(readers.get(index, [index]))
        lanes.append(lane)
    return lanes


def _line(
    start: int, ends: Sequence[int], at: Callable[[int], tuple[float, float]], tops: Sequence[int], lane: int
) -> str:
    """Along the lane of the value, row by row, and from there to each node that reads it."""
    x, y = at(start)
    parts = [f"M{x:g} {y:g}"]
    row = start // _COLUMNS
    for end in ends:
        to_row = end // _COLUMNS
        while row < to_row:
            parts.append(f"H{_WIDTH}")
            row += 1
            y = tops[row] + lane * _LANE + _LANE
            parts.append(f"M0 {y:g}")
        to_x, to_y = at(end)
        turn = to_x - _STEP / 2
        parts.append(f"H{turn:g}L{to_x:g} {to_y:g}M{turn:g} {y:g}")
    return "".join(parts)


def _node(node: DrawnNode, x: float, y: float) -> str:
    title = f"<title>{escape(clean(node.title, 200))}</title>"
    if node.large:
        return f'<rect class="{node.kind}" x="{x - 6:g}" y="{y - 6:g}" width="12" height="12" rx="2">{title}</rect>'
    return f'<circle class="{node.kind}" cx="{x:g}" cy="{y:g}" r="3.4">{title}</circle>'
