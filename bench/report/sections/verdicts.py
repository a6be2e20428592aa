"""The first part of a report: verdicts, gates, and each runtime's times with their ratios as a forest plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from convbn.bench.report.facts import (
    gate_counts,
    is_reference,
    noise_floors,
    sentence,
    summary_sentence,
    verdict_words,
)
from convbn.bench.report.sections import marks
from convbn.bench.results.comparisons import Comparison, Summary, case_label, comparisons, measured, summaries
from convbn.common.document.model import (
    MARKDOWN,
    PAGE,
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Group,
    Inline,
    Items,
    Mark,
    Row,
    Section,
    Table,
    verdict_mark,
)
from convbn.common.text import clean, percent, ratio_text, seconds_text

__all__ = ["cards", "gates", "results"]

_KINDS = {"faster": "faster", "slower": "slower", "no difference detected": "none"}
_LEAD = (
    "Median times per inference, and the median of paired time ratios with its bootstrap interval; below 1 is "
    "faster. Grey band: the noise floor, which is how far a second copy of the baseline came out from the "
    "first. Only an interval that leaves 1 out, around an effect beyond the band, counts as a difference; "
    "where it does not, the diamond is hollow, and sides are called the same if neither interval nor noise "
    "reaches farther than 5 %."
)


def cards(result: Mapping[str, Any]) -> Cards:
    """One card with one sentence: for each comparison, or for each runtime over several models."""
    if len(result["cases"]) == 1:
        return Cards([_card(one) for one in comparisons(result)])
    return Cards([_total_card(one) for one in summaries(result)])


def _card(one: Comparison) -> Card:
    row, told = one.row, sentence(one)
    side, runtime, note = row["side"], row["runtime"], one.control["note"]
    if not measured(row):
        return _made("off", side, runtime, "Not measured", "", told, note)
    if row["ratio"] is None:
        return _made("off", side, runtime, seconds_text(row["latency_seconds"]["median"]), "", told, note)
    words = verdict_words(row["verdict"], row["ratio"], one.control["noise_floor"])
    return _judged(side, runtime, row["ratio"], row["verdict"], words, told, note)


def _total_card(one: Summary) -> Card:
    told = summary_sentence(one)
    if one.overall is None or one.verdict is None:
        return _made("off", one.side, one.runtime, "Not measured", "", told, one.note)
    words = verdict_words(one.verdict, one.overall, one.noise_floor)
    return _judged(one.side, one.runtime, one.overall, one.verdict, words, told, one.note)


def _judged(
    side: str, runtime: str, ratio: Mapping[str, Any], verdict: str, words: str, told: str, note: str | None
) -> Card:
    if verdict == "no difference detected":
        big, under = words.partition(" (")[0].capitalize(), f"time ratio {ratio_text(ratio)}"
    else:
        factor = [1 / ratio[key] for key in ("median", "high", "low")]
        big = f"{factor[0]:.2f}× as fast"
        under = f"{percent(ratio['confidence'])} interval {factor[1]:.2f}× to {factor[2]:.2f}×"
    return _made(_KINDS.get(verdict, "off"), side, runtime, big, under, told, note)


def _made(kind: str, side: str, runtime: str, big: str, under: str, told: str, note: str | None) -> Card:
    if is_reference(side):
        kind, under = "reference", under and f"{under}; for reference, not convbn's doing"
    return Card(
        kind,
        clean(runtime, 40),
        clean(side, 40),
        big,
        under,
        told,
        None if note is None else clean(note, 400),
    )


def gates(outcomes: Sequence[Mapping[str, Any]]) -> list[Block]:
    """What each gate said: those that failed everywhere, those that held on the page."""
    if not outcomes:
        return []
    told = [
        (
            one["status"] == "passed" and "second run" not in one["sentence"],
            (verdict_mark(clean(one["status"], 20)), " ", clean(one["sentence"], 600)),
        )
        for one in sorted(outcomes, key=lambda one: bool(one["status"] == "passed"))
    ]
    return [
        Section(
            "Gates",
            [
                Items([(Mark(gate_counts(outcomes), "strong"),)], "gates"),
                Items([text for held, text in told if not held], "card gates"),
                Items([text for held, text in told if held], "card gates", depth=PAGE),
            ],
        )
    ]


def results(result: Mapping[str, Any]) -> Section:
    """Each runtime's times, ratios and forest plot, and what each calls a difference."""
    found = list(comparisons(result))
    several = len(result["cases"]) > 1
    totals = {(one.runtime, one.side): one for one in summaries(result)} if several else {}
    columns = [
        Column("model" if several else "side"),
        Column(clean(result["cases"][0]["sides"][0]["name"], 30), "num", spare=1),
        Column("this side", "num"),
        Column("p95", "num", last=MARKDOWN, spare=2),
        Column((Mark("← faster", "small"), Mark("slower →", "small")), "way", depth=PAGE),
        Column("time ratio [95 % interval]", "num ratio", label="ratio"),
        Column("result", "result", label=""),
    ]
    groups: dict[str, list[Comparison]] = {}
    for one in found:
        alone = not several or one.row["side"] == one.baseline["side"] or len(one.case["sides"]) < 3
        side = "" if alone else f" · {clean(one.row['side'], 40)}"
        groups.setdefault(f"{clean(one.row['runtime'], 60)}{side}", []).append(one)
    rows = [Group(title, list(_rows(result, here, totals))) for title, here in groups.items()]
    table = Table("Times and time ratios", columns, rows, "results", "runtime")
    return Section("Times and time ratios", [table, Items(list(_notes(found)))], _LEAD)


def _rows(
    result: Mapping[str, Any], found: Sequence[Comparison], totals: Mapping[tuple[str, str], Summary]
) -> Iterator[Row]:
    several = len(result["cases"]) > 1
    sides = list(dict.fromkeys(one.row["side"] for one in found))
    compared = [one for one in found if one.row["ratio"] is not None]
    axis = marks.ratio_axis([one.row for one in compared], [one.control["noise_floor"] for one in compared])
    for one in found:
        yield _row(one, case_label(result, one.case) if several else _side(one), axis)
    for side in sides:
        total = totals.get((found[0].row["runtime"], side))
        if total is not None and total.overall is not None and total.measured > 1:
            name = (
                "Geometric mean" if len(sides) == 1 else ("Geometric mean ", Mark(clean(side, 40), "small"))
            )
            yield _total_row(total, name, axis)
    if compared:
        labels = partial(marks.axis_labels, axis, lambda value: f"{value:.10g}", keep=1.0)
        scale = Cell("", "plot", drawing=cache(labels))
        yield Row([Cell("", "", 4), scale, Cell("", "", 2)], "scale", depth=PAGE)


def _side(one: Comparison) -> str:
    alone = one.row is one.baseline and not measured(one.row)
    return "every side" if alone else clean(one.row["side"], 60)


def _row(one: Comparison, name: Inline, axis: marks.Axis) -> Row:
    row, base = one.row, one.baseline
    if not measured(row):
        return Row([name, Cell(f"not measured: {clean(row['reason'], 400)}", "why", 6)], "off")
    before, times = base["latency_seconds"], row["latency_seconds"]
    start: list[Inline | Cell] = [name, Cell(seconds_text(before["median"]), label=clean(base["side"], 40))]
    tail = Cell(seconds_text(times["p95"]))
    if row["ratio"] is None:
        return Row([*start, Cell(""), tail, Cell("", "plot"), Cell(""), "nothing to compare with"])
    words = verdict_words(row["verdict"], row["ratio"], one.control["noise_floor"])
    label = f"{case_label({'cases': [one.case]}, one.case)}, {clean(row['side'], 60)}"
    plot = partial(marks.interval, axis, row["ratio"], row["verdict"], one.control["noise_floor"], label)
    after = Cell(seconds_text(times["median"]), label=clean(row["side"], 40))
    return Row(
        [
            *start,
            after,
            tail,
            Cell("", "plot", drawing=cache(plot)),
            ratio_text(row["ratio"]),
            verdict_mark(words),
        ],
        "grey" if is_reference(row["side"]) else "",
    )


def _total_row(total: Summary, name: Inline, axis: marks.Axis) -> Row:
    ratio, verdict = total.overall or {}, total.verdict or ""
    plot = partial(marks.interval, axis, ratio, verdict, 0, f"Geometric mean in {total.runtime}", total=True)
    counts = Cell(total.counts.partition(": ")[2], "counts", label="")
    words = verdict_words(verdict, ratio, total.noise_floor)
    drawn = Cell("", "plot", drawing=cache(plot))
    return Row([name, counts, Cell(""), Cell(""), drawn, ratio_text(ratio), verdict_mark(words)], "total")


def _notes(found: Sequence[Comparison]) -> Iterator[Inline]:
    moving = Counter(one.row["runtime"] for one in found if False in (one.row["warm"], one.baseline["warm"]))
    for runtime, floors in noise_floors((one.row["runtime"], one.control) for one in found).items():
        low, high = f"{min(floors) * 100:.1f}", f"{max(floors) * 100:.1f}"
        span = f"± {low} %" if low == high else f"from ± {low} to ± {high} %"
        yield Mark(clean(runtime, 60), "code"), f": noise floor {span} (the baseline against itself)."
    for runtime, count in moving.items():
        where = "" if count == 1 else f" in {count} comparisons"
        told = f": times were still moving when the warm-up ended{where}; the machine may be busy."
        yield Mark(clean(runtime, 60), "code"), told
