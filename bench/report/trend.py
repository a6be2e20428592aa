"""The history of a folder of results as one offline page, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from convbn.bench.report.page import marks
from convbn.bench.report.page.elements import (
    cells,
    definitions,
    document,
    esc,
    group,
    more,
    scroll,
    section,
    simple_table,
    tag,
    verdict_card,
    verdict_cards,
)
from convbn.bench.results.history import History, Machine, Series
from convbn.common.text import clean, plural, ratio_text, seconds_text

__all__ = ["render"]

MOST_BYTES = 500_000
_LIMITS = (400, 150, 50, 15)
_LEAD = (
    "Each line is one side in one runtime, oldest run on the left. Time ratio: to the baseline, below 1 is faster, "
    "with its 95 % interval. Time: the median, with the middle half of all inferences. Since the run before: what "
    "the last two runs show, each side through the baseline model where that is the same file."
)


def render(history: History) -> str:
    """Lay the history out as one self-contained HTML page.

    Args:
        history: the series.

    Returns:
        HTML under 500 kB without script or request.
    """
    for limit in _LIMITS:
        page = _page(history, limit)
        if len(page.encode()) < MOST_BYTES:
            break
    return page


def _page(history: History, limit: int) -> str:
    runs = [run for machine in history.machines for run in machine.runs]
    days = sorted(clean(run.created[:10]) for run in runs)
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    machines = plural(len(history.machines), "machine")
    body = [_verdicts(history.machines)]
    for index, machine in enumerate(history.machines[:limit]):
        body.append(_machine(machine, limit, lead=None if index else _LEAD))
    body.append(more(len(history.machines), limit))
    if history.left_out:
        rows = [(esc(name), esc(reason, 300)) for name, reason in history.left_out[:limit]]
        body.append(section("Left out", None, simple_table("Files left out", ("File", "Reason"), rows)))
    body.append("<footer>Made by convbn from the JSON results in one folder.</footer>")
    under = escape(f"{plural(len(runs), 'run')} on {machines}, {span}")
    return document("History of measurements", "history", under, "".join(body))


def _verdicts(machines: Sequence[Machine]) -> str:
    """What the newest run shows against the one before it."""
    changes = [one.last for one in machines[0].series if one.last is not None and not one.last.is_reference]
    slower = [one for one in changes if one.verdict == "slower"]
    faster = sum(one.verdict == "faster" for one in changes)
    if not changes:
        big, kind, told = "First run", "off", "There is nothing to compare it with yet."
    elif slower:
        names = ", ".join(f"{clean(one.case, 40)} in {clean(one.runtime, 40)}" for one in slower[:4])
        big, kind, told = f"{len(slower)} slower", "slower", f"Since the run before: {names}."
    else:
        big, kind, told = "Nothing slower", "faster" if faster else "none", "Since the run before."
    if changes:
        told += f" {plural(len(changes), 'comparison')}, {faster} faster, {len(slower)} slower."
    return verdict_cards([verdict_card(kind, machines[0].label, escape(big), f"<p>{escape(told)}</p>")])


def _machine(machine: Machine, limit: int, *, lead: str | None) -> str:
    head = (
        '<thead><tr><th scope="col">Model</th><th scope="col" class="way">Time ratio</th>'
        '<th scope="col" class="num">last [95 % interval]</th><th scope="col" class="way">Time</th>'
        '<th scope="col" class="num">last</th><th scope="col">Since the run before</th></tr></thead>'
    )
    shown = machine.series[:limit]
    bodies = []
    for runtime in dict.fromkeys(one.runtime for one in shown):
        rows = "".join(_row(one, _label(one, shown)) for one in shown if one.runtime == runtime)
        bodies.append(group(runtime, 6, rows))
    table = f'<table class="results trend">{head}{"".join(bodies)}</table>'
    runs = [(esc(run.name), esc(run.created)) for run in reversed(machine.runs[-limit:])]
    listed = (
        f"<details><summary>{plural(len(runs), 'run')}</summary>"
        f'<div class="card">{definitions(runs)}</div></details>'
    )
    return section(machine.label, lead, scroll(table, "Series") + more(len(machine.series), limit) + listed)


def _label(one: Series, shown: Sequence[Series]) -> str:
    """The side, and the case where one name stands for several."""
    several = len({other.case for other in shown if other.name == one.name}) > 1
    return f"{esc(one.side, 40)} · {esc(one.case, 60)}" if several else esc(one.side, 40)


def _row(one: Series, under: str) -> str:
    label = f"{clean(one.name, 60)}, {clean(one.side, 40)} in {clean(one.runtime, 40)}"
    ratios = [point for point in one.ratios if point is not None]
    ratio_cells = '<td class="plot"></td><td class="num ratio"></td>'
    if ratios:
        low, median, high = ratios[-1]
        told = f"time ratio of {label} over {plural(len(ratios), 'run')}, last {median:.3f}"
        last = ratio_text({"low": low, "median": median, "high": high})
        spark = marks.sparkline(one.ratios, told)
        ratio_cells = f'<td class="plot">{spark}</td>{cells([("num ratio", "ratio", last)])}'
    times = [point[1] for point in one.times if point is not None]
    told = f"time of {label} over {plural(len(times), 'run')}, last {seconds_text(times[-1])}"
    return (
        f'<tr><th scope="row" class="name">{esc(one.name, 60)} <small>{under}</small></th>'
        f'{ratio_cells}<td class="plot time">{marks.sparkline(one.times, told)}</td>'
        f"{cells([('num', 'median', seconds_text(times[-1])), ('result', '', _since(one))])}</tr>"
    )


def _since(one: Series) -> str:
    if one.last is None or one.last.ratio is None:
        return "<small>–</small>"
    if one.last.is_reference:
        drift = (one.last.ratio.median - 1) * 100
        return f"<small>yardstick: {drift:+.1f} %</small>"
    ratio = one.last.ratio
    return f"{tag(one.last.verdict)}<br><small>{ratio_text(ratio.to_dict())}</small>"
