"""The sections of the HTML page, in the order they stand in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from html import escape
from typing import Any

from convbn.bench.report import svg
from convbn.bench.report.facts import (
    batchnorm_sentence,
    clean,
    environment_lines,
    equality_entries,
    fold_groups,
    into_text,
    measured,
    number,
    option_lines,
    ratio_text,
    seconds_text,
    sentences,
    shape_text,
)

__all__ = [
    "batchnorms",
    "environment",
    "equality",
    "facts",
    "latencies",
    "ratios",
    "reproduce",
    "table",
    "verdicts",
]

_WIDE, _NARROW = 860, 330
_MOST_FIGURES = 12
_MOST_STRIPS = 8
_MOST_RATIOS = 30
_SERIES = 4
_NO_BREAK = "\u00a0"
_MARKS = {
    "faster": ("faster", "▼ faster"),
    "slower": ("slower", "▲ slower"),
    "no difference detected": ("none", "● no difference"),
    "baseline": ("baseline", "baseline"),
}


def verdicts(result: Mapping[str, Any], limit: int) -> str:
    """One card with one sentence for each comparison."""
    cards = []
    told = list(sentences(result))
    for row, sentence in told[:limit]:
        kind = _MARKS[row["verdict"]][0] if measured(row) else "off"
        big = f'<p class="big">{_headline(row)}</p>'
        cards.append(
            f'<div class="card verdict {kind}"><p class="mono">{_esc(row["runtime"])}</p>{big}'
            f"<p>{escape(sentence).replace(' %', _NO_BREAK + '%')}</p></div>"
        )
    return (
        f'<div class="verdicts" role="list" aria-label="Verdict">{"".join(cards)}</div>{_more(told, limit)}'
    )


def _headline(row: Mapping[str, Any]) -> str:
    if not measured(row):
        return "Not measured"
    ratio = row["ratio"]
    if ratio is None:
        return seconds_text(row["latency_seconds"]["median"])
    if row["verdict"] == "no difference detected":
        return f"No difference<small>time ratio {ratio_text(ratio)}</small>"
    factor = [1 / ratio[key] for key in ("median", "high", "low")]
    return (
        f"{factor[0]:.2f}× as fast"
        f"<small>{ratio['confidence'] * 100:g} % interval {factor[1]:.2f}× to {factor[2]:.2f}×</small>"
    )


def facts(result: Mapping[str, Any], limit: int) -> str:
    """What else is known, such as accuracies."""
    extra = list(result.get("extra") or ())[:limit]
    if not extra:
        return ""
    items = ((_esc(fact["label"]), _esc(fact["value"])) for fact in extra)
    return f'<section aria-label="Facts"><div class="card">{_list(items)}</div></section>'


def table(result: Mapping[str, Any], limit: int) -> str:
    """Medians, tails and ratios; rows that could not be measured say why."""
    head = (
        "<thead><tr><th>Runtime</th><th>Model</th><th class=num>Median</th><th class=num>p95</th>"
        "<th class=num>Time ÷ baseline<br>[95 % interval]</th><th class=num>n</th><th>Result</th>"
        "</tr></thead>"
    )
    body, last = [], None
    for row in result["rows"][:limit]:
        first = ' class="first"' if row["runtime"] != last else ""
        last = row["runtime"]
        names = f'<td class="name runtime mono">{_esc(last)}</td>'
        names += f'<th class="name" scope="row">{_esc(row["side"])}</th>'
        if not measured(row):
            kind = first.replace("first", "first off") or ' class="off"'
            reason = f"not measured: {_esc(row['reason'], 400)}"
            body.append(f'<tr{kind}>{names}<td class="why" colspan="5">{reason}</td></tr>')
            continue
        time = row["latency_seconds"]
        ratio = "–" if row["ratio"] is None else ratio_text(row["ratio"])
        mark, text = _MARKS[row["verdict"]]
        body.append(
            f"<tr{first}>{names}<td class=num>{seconds_text(time['median'])}</td>"
            f"<td class=num>{seconds_text(time['p95'])}</td><td class=num>{ratio}</td>"
            f'<td class=num>{time["n"]}</td><td><span class="tag {mark}">{text}</span></td></tr>'
        )
    return _section(
        "Times",
        "Per inference. n counts single inferences, run in blocks that alternate between the models in "
        "random order; a time ratio below 1 is faster than the baseline.",
        _table(head, body) + _more(result["rows"], limit) + _notes(result),
    )


def _notes(result: Mapping[str, Any]) -> str:
    lines = []
    moving = {row["runtime"] for row in result["rows"] if row["warm"] is False}
    for runtime in result["runtimes"][:_MOST_FIGURES]:
        name = f"<code>{_esc(runtime['runtime'])}</code>"
        if runtime["control"] is not None:
            if runtime["note"]:
                lines.append(f"{name}: {_esc(runtime['note'], 400)}.")
            if runtime["runtime"] in moving:
                lines.append(
                    f"{name}: times were still moving when the warm-up ended; the machine may be busy."
                )
    return f'<ul class="notes">{"".join(f"<li>{line}</li>" for line in lines)}</ul>' if lines else ""


def latencies(result: Mapping[str, Any], limit: int) -> str:
    """A chart of the distributions for each runtime."""
    charts = []
    for runtime in result["runtimes"][: min(limit, _MOST_FIGURES)]:
        rows = [r for r in result["rows"] if r["runtime"] == runtime["runtime"] and measured(r)][
            :_MOST_STRIPS
        ]
        if rows:
            colours = [_colour(result, row) for row in rows]
            chart = _both(partial(svg.distributions, rows, colours))
            charts.append(
                f'<h3 class="mono">{_esc(runtime["runtime"])}</h3><figure class="card">{chart}</figure>'
            )
    if not charts:
        return ""
    return _section(
        "Latency distributions",
        "Box: the middle half of all inferences, with the median. Whiskers: minimum and 95th percentile. "
        "Ring: 99th percentile (a triangle at the edge if it lies beyond). "
        "Ticks below: the mean of each block.",
        "".join(charts),
    )


def ratios(result: Mapping[str, Any], limit: int) -> str:
    """The forest plot."""
    rows = [row for row in result["rows"] if row["ratio"] is not None][: min(limit, _MOST_RATIOS)]
    if not rows:
        return ""
    floors = {r["runtime"]: r["noise_floor"] for r in result["runtimes"] if r["noise_floor"] is not None}
    colours = [_colour(result, row) for row in rows]
    controls = [
        (
            f"<code>{_esc(r['runtime'])}</code>",
            f"±{r['noise_floor'] * 100:.1f} %, from {ratio_text(r['control'])}",
        )
        for r in result["runtimes"][: min(limit, _MOST_FIGURES)]
        if r["control"] is not None
    ]
    chart = _both(partial(svg.forest, rows, floors, colours))
    return _section(
        "Time ratios",
        "Diamond: median of paired ratios to the baseline, with its 95 % bootstrap interval. Grey band: the "
        "noise floor, which is how far a second copy of the baseline came out from the first. Only an "
        "interval that leaves 1 out, around an effect beyond the band, counts as a difference.",
        f'<figure class="card">{chart}</figure><h3>Noise floors (baseline against itself)</h3>'
        f'<div class="card">{_list(controls)}</div>',
    )


def batchnorms(result: Mapping[str, Any], limit: int) -> str:
    """Where each BatchNorm went, or why it stays."""
    fold = result.get("fold")
    if not fold:
        return ""
    groups = fold_groups(fold)
    palette = {True: ("f0", "f1", "f2", "f3"), False: ("k0", "k1")}
    seen = {True: 0, False: 0}
    parts = []
    for name, count, folded in groups:
        colours = palette[folded]
        colour = f"var(--{colours[min(seen[folded], len(colours) - 1)]})"
        seen[folded] += 1
        parts.append((f"{'folded' if folded else 'kept'}: {name}", count, colour))
    legend = "".join(
        f'<li><i style="background:{colour}"></i><strong>{count}</strong> {escape(name)}</li>'
        for name, count, colour in parts[:limit]
    )
    chart = _both(partial(svg.stacked_bar, parts[:limit])) if parts else ""
    kept = _rows(
        ("BatchNorm", "Stays because", "Detail"),
        ((k["name"], k["reason"], k.get("detail")) for k in fold["kept"][:limit]),
    )
    folded_rows = _rows(
        ("BatchNorm", "Folded into", "Rule"),
        ((f["name"], into_text(f["into"]), f["rule"]) for f in fold["folded"][:limit]),
    )
    body = f'<figure class="card">{chart}<ul class="legend">{legend}</ul></figure>'
    if fold["kept"]:
        body += f"<h3>Kept</h3>{kept}{_more(fold['kept'], limit)}"
    if fold["folded"]:
        body += (
            f"<details><summary>All {len(fold['folded'])} folded BatchNorms</summary>"
            f"{folded_rows}{_more(fold['folded'], limit)}</details>"
        )
    return _section("Where the BatchNorms went", batchnorm_sentence(fold), body)


def equality(result: Mapping[str, Any], limit: int) -> str:
    """How far the outputs are apart."""
    entries = list(equality_entries(result))
    if not entries:
        return ""
    head = (
        "<thead><tr><th>Compared</th><th>Result</th><th>Output</th><th class=num>max |a − b|</th>"
        "<th class=num>relative</th><th class=num>worst channel</th><th class=num>bound</th></tr></thead>"
    )
    body = []
    for what, entry in entries[:limit]:
        tag = f'<span class="tag {entry["status"]}">{escape(entry["status"])}</span>'
        start = f'<tr class="first"><th class="name" scope="row">{escape(what)}</th><td>{tag}</td>'
        if not entry["outputs"]:
            body.append(f'{start}<td class="why" colspan="5">{_esc(entry["reason"], 400)}</td></tr>')
        for output in entry["outputs"][: min(limit, 20)]:
            kind = f"{_esc(output['dtype'])} {shape_text(output['shape'])}"
            name = f"{_esc(output['name'])}<br><small>{kind}</small>"
            errors = "".join(
                f"<td class=num>{number(output[key])}</td>"
                for key in ("max_abs_error", "rel_error", "worst_channel_error", "bound")
            )
            body.append(f'{start}<td class="name">{name}</td>{errors}</tr>')
            start = "<tr><td></td><td></td>"
    return _section(
        "Are the outputs equal?",
        "Both models ran on the same random inputs. Relative: max |a − b| / max |a|. Worst channel: the same "
        "against that channel's own level. The bound is √ε of the coarsest number type involved.",
        _table(head, body) + _more(entries, limit),
    )


def environment(result: Mapping[str, Any], limit: int) -> str:
    """The machine and its software."""
    items = [(escape(label), escape(value)) for label, value in environment_lines(result["environment"])]
    return _section("Environment", None, f'<div class="card">{_list(items[:limit])}</div>')


def reproduce(result: Mapping[str, Any], limit: int) -> str:
    """The command and everything else that has to be the same."""
    command = result.get("command")
    items = [(escape(label), escape(value)) for label, value in option_lines(result)]
    body = f"<pre>{_esc(command, 4000)}</pre><br>" if command else ""
    return _section("How to reproduce", None, f'{body}<div class="card">{_list(items[:limit])}</div>')


def _section(title: str, lead: str | None, body: str) -> str:
    lead = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


def _table(head: str, body: Iterable[str]) -> str:
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{"".join(body)}</tbody></table></div>'


def _rows(head: Iterable[str], rows: Iterable[tuple[object, ...]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = (
        "<tr>" + "".join(f'<td class="name">{_esc(cell, 300) or "–"}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return _table(f"<thead><tr>{top}</tr></thead>", body)


def _list(items: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{label}</dt><dd>{value}</dd>' for label, value in items)}</dl>"


def _both(draw: Callable[[int], str]) -> str:
    return f'<div class="wide">{draw(_WIDE)}</div><div class="narrow">{draw(_NARROW)}</div>'


def _more(items: Any, limit: int) -> str:
    left = len(items) - limit
    return f'<p class="lead">{left} more are in the JSON result.</p>' if left > 0 else ""


def _colour(result: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    names = [model["name"] for model in result["models"]]
    index = names.index(row["side"])
    return 0 if index == 0 else 1 + (index - 1) % _SERIES


def _esc(value: object, limit: int = 120) -> str:
    return escape(clean(value, limit))
