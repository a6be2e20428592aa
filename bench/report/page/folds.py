"""Where the BatchNorms went: shares by rule and reason, the ones that stay, and the layers one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from convbn.bench.report.facts import batchnorm_sentence, fold_groups, total_batchnorms
from convbn.bench.report.page import marks
from convbn.bench.report.page.elements import esc, more, section, simple_table
from convbn.common.text import clean

__all__ = ["batchnorms", "layers"]

_MOST_OPEN = 12
_MOST_PARTS = 40
_FOLDED, _KEPT = ("f0", "f1", "f2", "f3"), ("k0", "k1", "k2")


def batchnorms(result: Mapping[str, Any], limit: int) -> str:
    """How many BatchNorms each rule took in, and why each of the others stays."""
    total = total_batchnorms(result)
    if total is None:
        return ""
    groups = fold_groups(total)
    kinds = _kinds(groups)
    legend = "".join(
        f'<li><i class="{kinds[name, folded]}"></i><strong>{count:,}</strong> '
        f"{'folded' if folded else 'kept'}: {esc(name, 60)}</li>"
        for name, count, folded in groups[:limit]
    )
    folds = {case["name"]: case["fold"] for case in result["cases"] if case["fold"]}
    bars = "".join(_bar(name, fold, kinds, len(folds) > 1) for name, fold in list(folds.items())[:limit])
    kept = [(name, entry) for name, fold in folds.items() for entry in fold["kept"]]
    body = (
        f'<figure class="card bars">{bars}{more(len(folds), limit)}<ul class="legend">{legend}</ul></figure>'
    )
    if kept:
        body += f"<h3>Kept, and why</h3>{_kept(kept, limit, len(folds) > 1)}"
    return section("Where the BatchNorms went", batchnorm_sentence(total), body)


def _kinds(groups: Sequence[tuple[str, int, bool]]) -> dict[tuple[str, bool], str]:
    kinds: dict[tuple[str, bool], str] = {}
    for palette, wanted in ((_FOLDED, True), (_KEPT, False)):
        names = [name for name, _, folded in groups if folded is wanted]
        for index, name in enumerate(names):
            kinds[name, wanted] = palette[min(index, len(palette) - 1)]
    return kinds


def _bar(name: str, fold: Mapping[str, Any], kinds: Mapping[tuple[str, bool], str], several: bool) -> str:
    parts = [
        (f"{'folded' if folded else 'kept'}: {group}", count, kinds[group, folded])
        for group, count, folded in fold_groups(fold)[:_MOST_PARTS]
    ]
    norms = fold["batchnorm"]
    bar = marks.shares(parts, f"BatchNorms of {clean(name, 60)}" if several else "BatchNorms")
    label = f'<span class="what">{esc(name, 60)}</span>' if several else ""
    return f'<div class="bar-row">{label}{bar}<span class="num">{norms["before"]} → {norms["after"]}</span></div>'


def _kept(kept: Sequence[tuple[str, Mapping[str, Any]]], limit: int, several: bool) -> str:
    head: tuple[str, ...] = ("BatchNorm", "Model", "Stays because", "Detail")
    rows: Iterable[tuple[str, ...]] = (
        (
            esc(entry["name"], 200),
            esc(name, 60),
            f"<code>{esc(entry['reason'], 60)}</code>",
            esc(entry.get("detail"), 300),
        )
        for name, entry in kept[:limit]
    )
    if not several:
        head, rows = (head[0], *head[2:]), ((row[0], *row[2:]) for row in rows)
    table = simple_table("BatchNorms that stay", head, rows) + more(len(kept), limit)
    if len(kept) <= _MOST_OPEN:
        return table
    return f"{_reasons(kept, several)}<details><summary>Each of the {len(kept):,} that stay</summary>{table}</details>"


def _reasons(kept: Sequence[tuple[str, Mapping[str, Any]]], several: bool) -> str:
    groups: dict[str, Counter[str]] = {}
    for name, entry in kept:
        groups.setdefault(entry["reason"], Counter())[name] += 1
    ordered = sorted(groups.items(), key=lambda item: -item[1].total())
    lines = []
    for reason, counts in ordered[:_MOST_OPEN]:
        where = ", ".join(f"{esc(name, 60)} ({count})" for name, count in counts.most_common(_MOST_OPEN))
        if len(counts) > _MOST_OPEN:
            where += f" and {len(counts) - _MOST_OPEN} more"
        tail = (f" in {where}" if several else "") + "."
        lines.append(f"<li><strong>{counts.total():,}</strong> <code>{esc(reason, 60)}</code>{tail}</li>")
    return f'<ul class="reasons">{"".join(lines)}</ul>{more(len(ordered), _MOST_OPEN)}'


def layers(fold: Mapping[str, Any], limit: int) -> str:
    """Layer by layer, what stood there before and what stands there now."""
    found = list(_layers(fold))
    table = simple_table("Layers before and after", ("Before", "After", "How"), found[:limit])
    return f"{table}{more(len(found), limit)}"


def _layers(fold: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    taken: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for entry in fold["folded"]:
        into = (entry["into"],) if isinstance(entry["into"], str) else tuple(entry["into"])
        taken.setdefault((into, entry["rule"]), []).append(entry["name"])
    for (into, rule), names in taken.items():
        after = _chips(into)
        yield f"{after} + {_chips(names, 'norm')}", after, f"<code>{esc(rule, 60)}</code>"
    for entry in fold["merged"]:
        before = _chips(entry.get("names", ()), joint=" + ")
        yield before, _chip(entry.get("into", "")), f"merged: <code>{esc(entry.get('rule'), 60)}</code>"
    for entry in fold["kept"]:
        chip = _chip(entry["name"], "norm")
        yield chip, chip, f"kept: <code>{esc(entry['reason'], 60)}</code>"


def _chips(names: Sequence[object], kind: str = "layer", *, joint: str = " ") -> str:
    left = len(names) - _MOST_OPEN
    return joint.join(_chip(name, kind) for name in names[:_MOST_OPEN]) + (
        f" and {left:,} more" if left > 0 else ""
    )


def _chip(name: object, kind: str = "layer") -> str:
    return f'<code class="chip {kind}">{esc(name, 90)}</code>'
