"""Where the BatchNorms went: shares by rule and reason, the ones that stay, and the layers one by one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

from convbn.bench.report.facts import batchnorm_sentence, fold_groups, total_batchnorms
from convbn.bench.report.sections import marks
from convbn.common.document.model import (
    MARKDOWN,
    PAGE,
    Block,
    Column,
    Details,
    Inline,
    Items,
    Mark,
    Picture,
    Row,
    Section,
    Table,
    Text,
)
from convbn.common.text import clean
from convbn.fuse.summary import network, normalisations_sentence

__all__ = ["batchnorms", "layers"]

_MOST_OPEN = 12
_MOST_PARTS = 40
_MOST_BARS = 300
_FOLDED, _KEPT = ("f0", "f1", "f2", "f3"), ("k0", "k1", "k2")


def batchnorms(result: Mapping[str, Any]) -> Section:
    """How many BatchNorms each rule took in, and why each of the others stays."""
    total = total_batchnorms(result)
    if total is None:
        return Section("Where the BatchNorms went", [])
    groups = fold_groups(total)
    kinds = _kinds(groups)
    folds = {case["name"]: case["fold"] for case in result["cases"] if case["fold"]}
    several = len(folds) > 1

    def drawn() -> str:
        bars = "".join(_bar(name, fold, kinds, several) for name, fold in list(folds.items())[:_MOST_BARS])
        legend = "".join(
            f'<li><i class="{kinds[name, folded]}"></i><strong>{count:,}</strong> '
            f"{'folded' if folded else 'kept'}: {escape(name)}</li>"
            for name, count, folded in groups[:_MOST_PARTS]
        )
        return f'{bars}<ul class="legend">{legend}</ul>'

    blocks: list[Block] = [
        Text(batchnorm_sentence(total), "lead"),
        Picture(cache(drawn), kind="card bars"),
        Items(
            [f"{count} {'folded' if folded else 'kept'}: {name}" for name, count, folded in groups],
            last=MARKDOWN,
        ),
    ]
    if not several:
        picture = network(next(iter(folds.values())))
        blocks.insert(1, stages(next(iter(folds.values()))) if picture is None else picture)
    others = normalisations_sentence(total["normalisations"])
    blocks += [Text(others)] if others else []
    kept = [(name, entry) for name, fold in folds.items() for entry in fold["kept"]]
    if kept:
        blocks.append(Section("Kept, and why", _kept(kept, several), depth=PAGE))
    return Section("Where the BatchNorms went", blocks)


def stages(fold: Mapping[str, Any]) -> Picture:
    """Where the BatchNorms of each stage of a large network went: a bar a stage, which names begin with."""
    split: dict[str, dict[str, list[Any]]] = {}
    for key in ("folded", "kept"):
        for entry in fold[key]:
            stage = split.setdefault(_stage(entry["name"]), {"folded": [], "kept": []})
            stage[key].append(entry)
    kinds = _kinds(fold_groups(fold))
    counted = {
        name: {
            **found,
            "batchnorm": {"before": len(found["folded"]) + len(found["kept"]), "after": len(found["kept"])},
        }
        for name, found in split.items()
    }
    shown = list(counted.items())[:_MOST_PARTS]
    bars = cache(lambda: "".join(_bar(name, found, kinds, True) for name, found in shown))
    return Picture(bars, "Stage by stage", "card bars")


def _stage(name: str) -> str:
    """The first part of a name that says more than which model it is of: ``layer1`` of ``/layer1/layer1.0/bn1``."""
    parts = [part for part in re.split(r"[./]", name) if part]
    return parts[0] if parts and len(parts) > 1 else "others"


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
    label = f'<span class="what">{escape(clean(name, 60))}</span>' if several else ""
    return f'<div class="bar-row">{label}{bar}<span class="num">{norms["before"]} → {norms["after"]}</span></div>'


def _kept(kept: Sequence[tuple[str, Mapping[str, Any]]], several: bool) -> list[Block]:
    columns = [
        Column("BatchNorm"),
        *([Column("Model")] if several else []),
        Column("Stays because"),
        Column("Detail"),
    ]
    rows = [
        Row(
            [
                clean(entry["name"], 200),
                *([clean(name, 60)] if several else []),
                Mark(clean(entry["reason"], 60), "code"),
                clean(entry.get("detail"), 300),
            ]
        )
        for name, entry in kept
    ]
    table = Table("BatchNorms that stay", columns, rows)
    if len(kept) <= _MOST_OPEN:
        return [table]
    return [_reasons(kept, several), Details(f"Each of the {len(kept):,} that stay", [table], depth=MARKDOWN)]


def _reasons(kept: Sequence[tuple[str, Mapping[str, Any]]], several: bool) -> Items:
    groups: dict[str, Counter[str]] = {}
    for name, entry in kept:
        groups.setdefault(entry["reason"], Counter())[name] += 1
    lines: list[Inline] = []
    for reason, counts in sorted(groups.items(), key=lambda item: -item[1].total()):
        where = ", ".join(f"{clean(name, 60)} ({count})" for name, count in counts.most_common(_MOST_OPEN))
        if len(counts) > _MOST_OPEN:
            where += f" and {len(counts) - _MOST_OPEN} more"
        tail = (f" in {where}" if several else "") + "."
        lines.append((Mark(f"{counts.total():,}", "strong"), " ", Mark(clean(reason, 60), "code"), tail))
    return Items(lines, "reasons")


def layers(fold: Mapping[str, Any]) -> Table:
    """Layer by layer, what stood there before and what stands there now."""
    columns = [Column("Before"), Column("After"), Column("How")]
    return Table("Layers before and after", columns, [Row(cells) for cells in _layers(fold)])


def _layers(fold: Mapping[str, Any]) -> Iterator[tuple[Inline, Inline, Inline]]:
    taken: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for entry in fold["folded"]:
        into = (entry["into"],) if isinstance(entry["into"], str) else tuple(entry["into"])
        taken.setdefault((into, entry["rule"]), []).append(entry["name"])
    for (into, rule), names in taken.items():
        after = _chips(into)
        yield (after, " + ", _chips(names, "norm")), after, Mark(clean(rule, 60), "code")
    for entry in fold["merged"]:
        how = ("merged: ", Mark(clean(entry.get("rule"), 60), "code"))
        yield _chips(entry.get("names", ()), joint=" + "), _chip(entry.get("into", "")), how
    for entry in fold["kept"]:
        chip = _chip(entry["name"], "norm")
        yield chip, chip, ("kept: ", Mark(clean(entry["reason"], 60), "code"))


def _chips(names: Sequence[object], kind: str = "layer", *, joint: str = " ") -> tuple[Inline, ...]:
    left = len(names) - _MOST_OPEN
    chips = [part for name in names[:_MOST_OPEN] for part in (joint, _chip(name, kind))][1:]
    return (*chips, f" and {left:,} more") if left > 0 else tuple(chips)


def _chip(name: object, kind: str = "layer") -> Mark:
    return Mark(clean(name, 90), kind)
