"""The first part of the page: verdicts, and each runtime's times with their ratios as a forest plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from convbn.bench.report.facts import noise_floors, sentence, summary_sentence
from convbn.bench.report.page import marks
from convbn.bench.report.page.elements import (
    NO_BREAK,
    cells,
    definitions,
    esc,
    group,
    more,
    notes,
    scroll,
    section,
    tag,
    verdict_card,
    verdict_cards,
)
from convbn.bench.results.comparisons import Comparison, Summary, case_label, comparisons, measured, summaries
from convbn.common.text import percent, ratio_text, seconds_text

__all__ = ["facts", "gates", "results", "verdicts"]

_KINDS = {"faster": "faster", "slower": "slower", "no difference detected": "none"}


def verdicts(result: Mapping[str, Any], limit: int) -> str:
    """One card with one sentence: for each comparison, or for each runtime over several models."""
    if len(result["cases"]) == 1:
        found = list(comparisons(result))
        cards = [_card(one) for one in found[:limit]]
    else:
        totals = summaries(result)
        found, cards = list(comparisons(result))[: len(totals)], [_total_card(one) for one in totals[:limit]]
    return f"{verdict_cards(cards)}{more(len(found), limit)}"


def _card(one: Comparison) -> str:
    row = one.row
    kind = _KINDS.get(row["verdict"], "off") if measured(row) else "off"
    if not measured(row):
        big = "Not measured"
    elif row["ratio"] is None:
        big = seconds_text(row["latency_seconds"]["median"])
    else:
        big = _big(row["ratio"], row["verdict"])
    return _verdict_card(kind, row["runtime"], big, sentence(one), one.control["note"])


def _total_card(one: Summary) -> str:
    kind = _KINDS.get(one.verdict or "", "off")
    big = "Not measured" if one.overall is None else _big(one.overall, one.verdict or "")
    return _verdict_card(kind, one.runtime, big, summary_sentence(one), one.note)


def _verdict_card(kind: str, runtime: str, big: str, told: str, note: str | None) -> str:
    extra = f'<p class="note">{esc(note, 400)}.</p>' if note else ""
    below = f"<p>{escape(told).replace(' %', NO_BREAK + '%')}</p>{extra}"
    return verdict_card(kind, runtime, big, below)


def _big(ratio: Mapping[str, Any], verdict: str) -> str:
    if verdict == "no difference detected":
        return f"No difference<small>time ratio {ratio_text(ratio)}</small>"
    factor = [1 / ratio[key] for key in ("median", "high", "low")]
    return (
        f"{factor[0]:.2f}× as fast"
        f"<small>{percent(ratio['confidence'])} interval {factor[1]:.2f}× to {factor[2]:.2f}×</small>"
    )


def facts(result: Mapping[str, Any], limit: int) -> str:
    """What else is known, such as accuracies."""
    extra = list(result.get("extra") or ())[:limit]
    if not extra:
        return ""
    items = ((esc(fact["label"]), esc(fact["value"])) for fact in extra)
    return f'<section aria-label="Facts"><div class="card">{definitions(items)}</div></section>'


def gates(outcomes: Sequence[Mapping[str, Any]], limit: int) -> str:
    """What each gate said."""
    if not outcomes:
        return ""
    items = "".join(
        f'<li class="{esc(one["status"], 20).replace(" ", "-")}"><strong>{esc(one["status"], 20)}</strong> '
        f"<code>{esc(one['gate'], 200)}</code><br>{esc(one['sentence'], 400)}</li>"
        for one in sorted(outcomes, key=lambda one: bool(one["status"] == "passed"))[:limit]
    )
    return section("Gates", None, f'<ul class="card gates">{items}</ul>{more(len(outcomes), limit)}')


def results(result: Mapping[str, Any], limit: int) -> str:
    """Each runtime's times, ratios and forest plot."""
    found = list(comparisons(result))
    shown = found[:limit]
    runtimes = list(dict.fromkeys(one.row["runtime"] for one in shown))
    several = len(result["cases"]) > 1
    totals = {(one.runtime, one.side): one for one in summaries(result)} if several else {}
    bodies = [
        _runtime(result, [one for one in shown if one.row["runtime"] == name], totals) for name in runtimes
    ]
    name = "Model" if several else "Side"
    base = esc(result["cases"][0]["sides"][0]["name"], 30)
    head = (
        f'<thead><tr><th scope="col">{name}</th><th scope="col" class="num">{base}</th>'
        '<th scope="col" class="num">this side</th><th scope="col" class="way">'
        '<span>← faster</span><span>slower →</span></th><th scope="col" class="num">Time ratio '
        '[95&nbsp;%&nbsp;interval]</th><th scope="col">Result</th></tr></thead>'
    )
    lead = (
        "Median times per inference, and the median of paired time ratios with its bootstrap interval; below 1 is "
        "faster. Grey band: the noise floor, which is how far a second copy of the baseline came out from the "
        "first. Only an interval that leaves 1 out, around an effect beyond the band, counts as a difference; "
        "where it does not, the diamond is hollow."
    )
    table = scroll(f'<table class="results">{head}{"".join(bodies)}</table>', "Times and time ratios")
    return section("Times and time ratios", lead, f"{table}{more(len(found), limit)}{_notes(found)}")


def _runtime(
    result: Mapping[str, Any],
    found: Sequence[Comparison],
    totals: Mapping[tuple[str, str], Summary],
) -> str:
    runtime = found[0].row["runtime"]
    sides = list(dict.fromkeys(one.row["side"] for one in found))
    several = len(result["cases"]) > 1
    compared = [one for one in found if one.row["ratio"] is not None]
    axis = marks.ratio_axis([one.row for one in compared], [one.control["noise_floor"] for one in compared])
    rows = []
    for one in found:
        label = case_label(result, one.case) if several else _side(one)
        name = esc(label)
        if several and len(sides) > 1:
            name += f" <small>{esc(one.row['side'], 40)}</small>"
        rows.append(_row(one, name, f"{label}, {one.row['side']} in {runtime}", axis))
    for side in sides:
        total = totals.get((runtime, side))
        if total is not None and total.overall is not None and total.measured > 1:
            extra = f" <small>{esc(side, 40)}</small>" if len(sides) > 1 else ""
            rows.append(_total_row(total, f"Geometric mean{extra}", axis))
    if compared:
        labels = marks.axis_labels(axis, lambda value: f"{value:.10g}", keep=1.0)
        rows.append(
            f'<tr class="scale"><td colspan="3"></td><td class="plot">{labels}</td><td colspan="2"></td></tr>'
        )
    return group(runtime, 6, "".join(rows))


def _side(one: Comparison) -> str:
    alone = one.row is one.baseline and not measured(one.row)
    return "every side" if alone else str(one.row["side"])


def _row(one: Comparison, name: str, label: str, axis: marks.Axis) -> str:
    row, base = one.row, one.baseline
    head = f'<th scope="row" class="name">{name}</th>'
    if not measured(row):
        return f'<tr class="off">{head}<td class="why" colspan="5">not measured: {esc(row["reason"], 400)}</td></tr>'
    before = seconds_text(base["latency_seconds"]["median"])
    if row["ratio"] is None:
        alone = '<td class="why" colspan="4">nothing to compare with</td>'
        return f"<tr>{head}{cells([('num', 'baseline', before)])}{alone}</tr>"
    plot = marks.interval(axis, row["ratio"], row["verdict"], one.control["noise_floor"], label)
    after = seconds_text(row["latency_seconds"]["median"])
    return (
        f"<tr>{head}{cells([('num', base['side'], before), ('num', row['side'], after)])}"
        f'<td class="plot">{plot}</td>'
        f"{cells([('num ratio', 'ratio', ratio_text(row['ratio'])), ('result', '', tag(row['verdict']))])}</tr>"
    )


def _total_row(total: Summary, name: str, axis: marks.Axis) -> str:
    ratio, verdict = total.overall or {}, total.verdict or ""
    plot = marks.interval(axis, ratio, verdict, 0, f"Geometric mean in {total.runtime}", total=True)
    return (
        f'<tr class="total"><th scope="row" class="name">{name}</th>'
        f'<td class="counts" colspan="2">{escape(total.counts.partition(": ")[2])}</td><td class="plot">{plot}</td>'
        f"{cells([('num ratio', 'ratio', ratio_text(ratio)), ('result', '', tag(verdict))])}</tr>"
    )


def _notes(found: Sequence[Comparison]) -> str:
    lines = []
    moving = Counter(one.row["runtime"] for one in found if False in (one.row["warm"], one.baseline["warm"]))
    for runtime, floors in noise_floors((one.row["runtime"], one.control) for one in found).items():
        low, high = f"{min(floors) * 100:.1f}", f"{max(floors) * 100:.1f}"
        span = f"±{low} %" if low == high else f"from ±{low} to ±{high} %"
        lines.append(f"<code>{esc(runtime)}</code>: noise floor {span} (the baseline against itself).")
    for runtime, count in moving.items():
        where = "" if count == 1 else f" in {count} comparisons"
        lines.append(
            f"<code>{esc(runtime)}</code>: times were still moving when the warm-up ended{where}; "
            "the machine may be busy."
        )
    return notes(lines)
