"""The history of a folder of results as one offline page, in the style of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial

from convbn.bench.report.sections import marks
from convbn.bench.results.history import History, Machine, Series
from convbn.common.document.html import MOST_BYTES, rendered
from convbn.common.document.model import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Document,
    Facts,
    Group,
    Inline,
    Mark,
    Row,
    Section,
    Table,
    verdict_mark,
)
from convbn.common.text import clean, plural, ratio_text, seconds_text

__all__ = ["MOST_BYTES", "render"]

_LEAD = (
    "Each line is one side in one runtime, oldest run on the left. Time ratio: to the baseline, below 1 is faster, "
    "with its 95 % interval. Time: the median, with the middle half of all inferences. Since the run before: what "
    "the last two runs show, each side through the baseline model where that is the same file."
)
_COLUMNS = (
    Column("Model"),
    Column("Time ratio", "plot"),
    Column("last [95 % interval]", "num ratio", label="ratio"),
    Column("Time", "plot time"),
    Column("last", "num", label="median"),
    Column("Since the run before", "result", label=""),
)


def render(history: History) -> str:
    """Lay the history out as one self-contained HTML page.

    Args:
        history: the series.

    Returns:
        HTML under 500 kB without script or request.
    """
    runs = [run for machine in history.machines for run in machine.runs]
    days = sorted(clean(run.created[:10]) for run in runs)
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    machines = plural(len(history.machines), "machine")
    blocks: list[Block] = [_verdicts(history.machines)]
    blocks += [_machine(machine, "" if i else _LEAD) for i, machine in enumerate(history.machines)]
    if history.left_out:
        rows = [Row((clean(name), clean(reason, 300))) for name, reason in history.left_out]
        table = Table("Files left out", (Column("File"), Column("Reason")), rows)
        blocks.append(Section("Left out", [table]))
    under = f"{plural(len(runs), 'run')} on {machines}, {span}"
    foot = "Made by convbn from the JSON results in one folder."
    return rendered(Document("History of measurements", "history", under, blocks, foot))


def _verdicts(machines: Sequence[Machine]) -> Cards:
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
    return Cards([Card(kind, clean(machines[0].label, 200), "", big, "", told)])


def _machine(machine: Machine, lead: str) -> Section:
    groups = [
        Group(
            clean(runtime, 60),
            [Row(list(_cells(one, machine.series))) for one in machine.series if one.runtime == runtime],
        )
        for runtime in dict.fromkeys(one.runtime for one in machine.series)
    ]
    runs = [(clean(run.name), clean(run.created)) for run in reversed(machine.runs)]
    table = Table("Series", _COLUMNS, groups, "results trend")
    return Section(clean(machine.label, 200), [table, Details(plural(len(runs), "run"), [Facts(runs)])], lead)


def _cells(one: Series, shown: Sequence[Series]) -> Iterator[Inline | Cell]:
    """Name, time ratio and time over the runs with the last of each, and what changed since the run before."""
    several = len({other.case for other in shown if other.name == one.name}) > 1
    under = clean(one.side, 40) + (f" · {clean(one.case, 60)}" if several else "")
    yield clean(one.name, 60), " ", Mark(under, "small")
    label = f"{clean(one.name, 60)}, {clean(one.side, 40)} in {clean(one.runtime, 40)}"
    ratios = [point for point in one.ratios if point is not None]
    if ratios:
        low, median, high = ratios[-1]
        told = f"time ratio of {label} over {plural(len(ratios), 'run')}, last {median:.3f}"
        yield Cell("", drawing=cache(partial(marks.sparkline, one.ratios, told)))
        yield ratio_text({"low": low, "median": median, "high": high})
    else:
        yield from (Cell("", "plot"), "")
    times = [point[1] for point in one.times if point is not None]
    told = f"time of {label} over {plural(len(times), 'run')}, last {seconds_text(times[-1])}"
    yield Cell("", drawing=cache(partial(marks.sparkline, one.times, told)))
    yield seconds_text(times[-1])
    yield _since(one)


def _since(one: Series) -> Inline:
    if one.last is None or one.last.ratio is None:
        return Mark("–", "small")
    if one.last.is_reference:
        drift = (one.last.ratio.median - 1) * 100
        return Mark(f"yardstick: {drift:+.1f} %", "small")
    return verdict_mark(one.last.verdict), Mark(f" {ratio_text(one.last.ratio.to_dict())}", "small")
