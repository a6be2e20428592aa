"""How far the outputs of the sides are apart."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from convbn.bench.report.facts import equality_entries, worst_error
from convbn.bench.report.page.elements import cells, esc, more, scroll, section, tag
from convbn.common.text import number, shape_text

__all__ = ["equality"]

_ERRORS = {
    "max |a − b|": "max_abs_error",
    "relative": "rel_error",
    "worst channel": "worst_channel_error",
    "bound": "bound",
}
#: Shown where some output has them: with a precision that gives up digits.
_AGREEMENT = {"cosine": "cosine", "same top-1": "top1_agreement"}
_LEAD = (
    "Both models ran on the same random inputs. Relative: max |a − b| / max |a|. Worst channel: the same "
    "against that channel's own level. The bound is √ε of the coarsest number type involved, or what "
    "the chosen precision is allowed."
)
_MOST_OUTPUTS = 20


def equality(result: Mapping[str, Any], limit: int) -> str:
    """Every comparison; where all of several models are equal, a sentence and the rest folded away."""
    several = len(result["cases"]) > 1
    found = equality_entries(result, ": ")
    if not found:
        return ""
    outputs = [output for _, entry in found for output in entry["outputs"]]
    columns = _ERRORS | {
        name: key for name, key in _AGREEMENT.items() if any(o.get(key) not in (None, 1.0) for o in outputs)
    }
    top = "".join(f'<th scope="col" class="num">{name}</th>' for name in columns)
    head = f'<th scope="col">Compared</th><th scope="col">Result</th><th scope="col">Output</th>{top}'
    body = "".join(
        _rows(what, entry, columns, min(limit, 3 if several else _MOST_OUTPUTS))
        for what, entry in found[:limit]
    )
    table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    content = scroll(table, "Comparisons of outputs") + more(len(found), limit)
    if several and all(entry["status"] == "equal" for _, entry in found):
        worst = worst_error(*(entry for _, entry in found)) or 0.0
        told = f"in all {len(found)} comparisons; the largest relative error is {number(worst)}."
        content = (
            f'<p class="answer">{tag("equal")} {escape(told)}</p>'
            f"<details><summary>Every comparison</summary>{content}</details>"
        )
    return section("Are the outputs equal?", _LEAD, content)


def _rows(what: str, entry: Mapping[str, Any], columns: Mapping[str, str], limit: int) -> str:
    start = f'<tr><th class="name" scope="row">{escape(what)}</th>{cells([("", "", tag(entry["status"]))])}'
    empty = '<tr><td class="empty"></td><td class="empty"></td>'
    body = []
    if not entry["outputs"] or entry["status"] != "equal":
        body.append(
            f'{start}<td class="why" colspan="{1 + len(columns)}">{esc(entry["reason"], 400)}</td></tr>'
        )
        start = empty
    for output in entry["outputs"][:limit]:
        kind = f"{esc(output['dtype'])} {shape_text(output['shape'], '×')}"
        errors = cells(("num", name, _value(output, key)) for name, key in columns.items())
        body.append(f'{start}<td class="name">{esc(output["name"])} <small>{kind}</small></td>{errors}</tr>')
        start = empty
    return "".join(body)


def _value(output: Mapping[str, Any], key: str) -> str:
    value = output.get(key)
    if value is None:
        return "–"
    if key == "top1_agreement":
        return f"{value * 100:.1f} %"
    return f"{value:.6f}" if key == "cosine" else number(value)
