"""The report of a fold as blocks of a document: the answer in a line, what went where, what stays and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from html import escape
from itertools import groupby
from typing import Any

from convbn.common.document.graph import DrawnNode, drawn
from convbn.common.document.model import (
    Banner,
    Block,
    Column,
    Inline,
    Items,
    Mark,
    Picture,
    Row,
    Section,
    Table,
    Text,
)
from convbn.common.text import bytes_text, number, plural, printable
from convbn.fuse.overview import OWN_STATISTICS
from convbn.fuse.refusal import Reason

__all__ = [
    "equality_marks",
    "fates",
    "fold_banner",
    "fold_blocks",
    "folded_mark",
    "folds_listed",
    "network",
    "normalisations_sentence",
    "worst_error",
    "worst_output",
]

_FATES = {
    "into": ("f0", "folded into the layer beside it"),
    "through": ("f1", "folded through operators in between"),
    "merged": ("f2", "folded and merged"),
    "kept": ("k0", "kept"),
}
_MOST_FOLDS = 20
_MOST_OPERATORS = 12


def worst_error(*equalities: Mapping[str, Any]) -> float | None:
    """The largest relative error of any output; None where there is none."""
    worst = worst_output([output for equality in equalities for output in equality["outputs"]])
    return None if worst is None else worst["rel_error"] or 0.0


def worst_output(outputs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The output with the largest relative error; None where there is none."""
    return max(outputs, key=lambda output: output["rel_error"] or 0.0, default=None)


def equality_marks(entries: Sequence[Mapping[str, Any]]) -> Iterator[Mark]:
    """Whether outputs are equal, and how that was shown; nothing where nothing was compared."""
    if not entries:
        return
    for status in ("different", "inconclusive"):
        count = sum(entry["status"] == status for entry in entries)
        if count:
            yield Mark(f"✗ {count} of {plural(len(entries), 'comparison')} {status}", "bad")
            return
    worst = number(worst_error(*entries) or 0.0)
    folds = [fold for entry in entries for fold in (entry.get("proof") or {}).get("folds", ())]
    seen = sum(fold["how"] is not None for fold in folds)
    shown = f"{seen} of {plural(len(folds), 'fold')} and all outputs" if folds else "all outputs"
    if len(entries) > 1:
        shown += f" in {len(entries)} comparisons"
    yield Mark(f"Equal ✓ ({shown}, relative error at most {worst})", "good")


def folded_mark(fold: Mapping[str, Any], *, would: bool = False) -> Mark:
    """How many BatchNorms went, or would go."""
    before, after = fold["batchnorm"]["before"], fold["batchnorm"]["after"]
    if not before:
        return Mark("no BatchNorm to fold", "soft")
    return Mark(
        f"{before - after} of {before} {'would be ' if would else ''}folded", "soft" if after else "strong"
    )


def fold_banner(report: Mapping[str, Any], *, would: bool = False) -> Banner:
    """The answer of a fold.

    Args:
        report: by the published schema of ``convbn fuse``.
        would: nothing was folded yet.
    """
    verify = report["verify"]
    told: list[Mark] = []
    if verify["status"] != "not run":
        told = list(equality_marks([verify]))
    elif not would:
        told = [Mark("not verified", "soft")]
    kind = "failed" if verify["status"] == "different" else ""
    return Banner([*told, folded_mark(report, would=would)], kind=kind)


def normalisations_sentence(found: Mapping[str, int]) -> str:
    """What a model has of normalisations that are no BatchNorm, and why they stay; empty where it has none."""
    if not found:
        return ""
    listed = ", ".join(f"{count} {printable(kind)}" for kind, count in found.items())
    total = sum(found.values())
    verb = "normalisation is" if total == 1 else "normalisations are"
    return f"{total} {verb} no BatchNorm and stay{'s' if total == 1 else ''}: {listed}; {OWN_STATISTICS}."


def fold_blocks(report: Mapping[str, Any], *, would: bool = False) -> list[Block]:
    """All that a report says of a fold.

    Args:
        report: by the published schema of ``convbn fuse``.
        would: nothing was folded yet.
    """
    columns = (Column(""), Column("before", "num"), Column("after", "num"))
    blocks: list[Block] = [fold_banner(report, would=would), Table("Counts", columns, list(_counts(report)))]
    if report["merged"]:
        were = "would be " if would else ""
        blocks.append(Text(f"{len(report['merged'])} further maps and branches {were}merged"))
    blocks += [Text(f"note: {printable(note)}") for note in report["input"]["notes"]]
    others = normalisations_sentence(report.get("normalisations") or {})
    blocks += [Text(others)] if others else []
    picture = network(report)
    blocks += [picture] if picture is not None else []
    kept = sorted(report["kept"], key=lambda entry: str(entry["reason"]))
    for reason, entries in groupby(kept, key=lambda entry: str(entry["reason"])):
        group = list(entries)
        verb = "would stay" if would else "stay" if len(group) > 1 else "stays"
        listed: list[Inline] = [f"{printable(one['name'])}: {printable(one['detail'])}" for one in group]
        why = Text(f"{Reason(reason).explanation}:")
        blocks.append(Section(f"{len(group)} {verb}: {reason}", [why, Items(listed, "reasons")]))
    return [*blocks, *_proof(report["verify"])]


def _counts(report: Mapping[str, Any]) -> Iterator[Row]:
    """BatchNorms, nodes, these by operator, and the size of the file, before and after."""

    def row(name: str, count: Mapping[str, int], text: Callable[[int], str] = str) -> Row:
        return Row((name, text(count["before"]), text(count["after"])))

    yield row("BatchNorm", report["batchnorm"])
    yield row("nodes", report["nodes"])
    operators = list((report.get("operators") or {}).items())
    most = _MOST_OPERATORS if len(operators) > _MOST_OPERATORS + 1 else len(operators)
    yield from (row(f"  {printable(name)}", count) for name, count in operators[:most])
    if rest := [count for _, count in operators[most:]]:
        total = {when: sum(count[when] for count in rest) for when in ("before", "after")}
        yield row(f"  {len(rest)} other operators", total)
    if report.get("size"):
        yield row("file", report["size"], bytes_text)


def folds_listed(report: Mapping[str, Any], *, everything: bool) -> Section:
    """Which BatchNorm goes into what; a long list is shortened unless everything is wanted."""
    folds = report["folded"] if everything else report["folded"][:_MOST_FOLDS]
    lines: list[Inline] = []
    for fold in folds:
        into = ", ".join(printable(name) for name in fold["into"])
        lines.append(f"{printable(fold['name'])} {f'-> {into} ' if into else ''}({fold['rule']})")
    left = len(report["folded"]) - len(folds)
    return Section("folds:", [Items([*lines, *([f"and {left} more; --all lists them"] if left else [])])])


def _proof(verify: Mapping[str, Any]) -> list[Block]:
    """The proof in sentences."""
    if verify["status"] == "equal":
        errors = [o["rel_error"] for o in verify["outputs"] if o.get("rel_error") is not None]
        worst = f"relative error at most {max(errors):.1e}" if errors else "identical"
        told = f"outputs equal: {worst} over {verify['samples']} seeded inputs ({verify['runtime']})"
    elif verify["status"] == "not run":
        told = f"not verified: {verify['reason']}"
    else:
        told = f"{verify['status']}: {verify['reason']}"
    proof = verify.get("proof")
    if proof is None:
        return [Text(told)]
    unseen = ", ".join(printable(fold["name"]) for fold in proof["folds"] if fold["how"] is None)
    lines: list[Inline] = [f"proof: {proof['sentence']}"]
    return [Text(told), Items([*lines, *([f"not shown by any comparison: {unseen}"] if unseen else [])])]


def fates(report: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What became of each BatchNorm, by name: ``into``, ``through``, ``merged`` or ``kept``, and that in words."""
    graph = report.get("graph") or {"nodes": [], "edges": []}
    names = [name for name, _ in graph["nodes"]]
    beside: dict[str, set[str]] = {}
    for start, end in graph["edges"]:
        beside.setdefault(names[start], set()).add(names[end])
        beside.setdefault(names[end], set()).add(names[start])
    merged = {name for one in report["merged"] for name in (*one["names"], one["into"])}
    found = {}
    for fold in report["folded"]:
        into = [fold["into"]] if isinstance(fold["into"], str) else fold["into"]
        near = beside.get(fold["name"], set())
        fate = "merged" if merged & {fold["name"], *into} else "into" if set(into) & near else "through"
        found[fold["name"]] = (fate, f"folded into {', '.join(into)} ({fold['rule']})")
    for kept in report["kept"]:
        found[kept["name"]] = ("kept", f"kept: {kept['reason']}")
    return found


def network(report: Mapping[str, Any]) -> Picture | None:
    """Where each BatchNorm went, as a picture of the network; None where there are too many nodes for one."""
    if not report.get("graph") or not report["batchnorm"]["before"]:
        return None
    return Picture(cache(partial(_network, report)), "Where each BatchNorm went", "card")


def _network(report: Mapping[str, Any]) -> str:
    graph = report["graph"]
    known = fates(report)
    took = {name for fold in report["folded"] for name in fold["into"]}
    nodes = []
    for name, operator in graph["nodes"]:
        fate, told = known.get(name, ("", ""))
        kind = _FATES[fate][0] if fate else "took" if name in took else "plain-node"
        nodes.append(DrawnNode(f"{name} ({operator}){f': {told}' if told else ''}", kind, bool(fate)))
    counts = Counter(fate for fate, _ in known.values())
    legend = "".join(
        f'<li><i class="{_FATES[fate][0]}"></i><strong>{counts[fate]}</strong> {escape(_FATES[fate][1])}</li>'
        for fate in _FATES
        if counts[fate]
    )
    listed = ", ".join(f"{counts[fate]} {_FATES[fate][1]}" for fate in _FATES if counts[fate])
    svg = drawn(nodes, graph["edges"], f"Where each BatchNorm went: {listed}")
    took_one = '<li><i class="took"></i>a layer that took one in</li><li><i class="plain-node"></i>other operators</li>'
    return f'{svg}<ul class="legend">{legend}{took_one}</ul>'
