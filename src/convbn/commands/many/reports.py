"""A run over many models as JSON, as JUnit, and as one document for the terminal, Markdown and a page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convbn.bench.report.junit import Case, suite
from convbn.common import __version__
from convbn.common.document.model import (
    MARKDOWN,
    Banner,
    Block,
    Column,
    Document,
    Inline,
    Items,
    Mark,
    Row,
    Table,
    Text,
)
from convbn.common.encoding import encoded
from convbn.common.text import bytes_text, clean, number, plural
from convbn.export.loading.remote import is_url, shown
from convbn.pipeline.outcome import Outcome, counts

__all__ = ["document", "junit", "pages", "result_of"]

SCHEMA_VERSION = "1"
_RATIO = 6
"""The column of ratios."""
_ROWS = 500
"""Models on a page."""
_WORST = ("failed", "cancelled", "done", "cached")


def result_of(name: str, created: str, seconds: float, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The JSON of a run.

    Args:
        name: of the plan, or the command.
        created: when it began, ISO 8601.
        seconds: that it took.
        outcomes: of all steps.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "convbn", "version": __version__},
        "name": name,
        "created": created,
        "seconds": seconds,
        "counts": counts(outcomes),
        "steps": encoded(list(outcomes)),
    }


def junit(name: str, created: str, seconds: float, outcomes: Iterable[Outcome]) -> str:
    """A test case a step: failures with their sentence, what was cancelled as skipped."""
    tags = {"failed": "failure", "cancelled": "skipped"}
    cases = [
        Case(
            f"convbn.{clean(outcome.model, 100)}",
            clean(outcome.name, 200),
            outcome.seconds,
            tags.get(outcome.status),
            clean(outcome.error, 400),
            outcome.kind,
        )
        for outcome in outcomes
    ]
    return suite(f"convbn {clean(name, 100)}", cases, seconds=seconds, created=created)


def document(name: str, seconds: float, outcomes: Sequence[Outcome], folder: str | None = None) -> Document:
    """Totals, then a row a model, those that failed first.

    Args:
        name: what the document is called.
        seconds: that all took.
        outcomes: of all steps.
        folder: where the page will lie, or its URL, from which models' own pages are linked.
    """
    found = counts(outcomes)
    kinds = {"failed": "bad", "cancelled": "soft", "done": "good", "cached": "soft"}
    parts = [Mark(f"{count} {status}", kinds[status]) for status, count in found.items() if count]
    models: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        models.setdefault(outcome.model, []).append(outcome)
    rows = sorted(
        ((min(_WORST.index(one.status) for one in steps), model, steps) for model, steps in models.items()),
        key=lambda row: row[0],
    )
    columns = [
        Column("model"),
        Column("BatchNorms", "num"),
        Column("size", "num", spare=1),
        Column("outputs", "result", MARKDOWN),
        Column("error", "num"),
        Column("noise", "num", spare=2),
        Column("folded / original", "num", label="ratio"),
        Column("seconds", "num", spare=1),
        Column("status", "result"),
    ]
    cells = [_cells(model, steps, folder) for _, model, steps in rows]
    if all(row[_RATIO] == "–" for row in cells):  # nothing was measured
        columns.pop(_RATIO)
        for row in cells:
            row.pop(_RATIO)
    table = Table("Models", columns, [Row(row) for row in cells])
    failures = [outcome for outcome in outcomes if outcome.status == "failed"]
    told = Items([(Mark(one.name, "strong"), f": {one.error}") for one in failures], "card gates failures")
    under = f"{plural(len(models), 'model')}, {plural(len(outcomes), 'step')}, {seconds:.1f} s"
    banner = Banner(parts, under, "failed" if failures else "", depth=MARKDOWN)
    return Document(f"convbn {name}", "run", "", [banner, told, table])


def pages(whole: Document, path: str) -> Iterator[tuple[str, Document]]:
    """A document of many models in pages, each with where it is to lie: ``run.html``, ``run-2.html`` and so on.

    Args:
        whole: what :func:`document` made.
        path: of the first page, or its URL.
    """
    table = next(block for block in whole.blocks if isinstance(block, Table))
    above = [block for block in whole.blocks if block is not table]
    stem, suffix = os.path.splitext(path)
    starts = range(0, max(1, len(table.rows)), _ROWS)
    paths = [path, *(f"{stem}-{number}{suffix}" for number in range(2, len(starts) + 1))]
    for place, start in zip(paths, starts, strict=True):
        blocks: list[Block] = above if start == 0 else [block for block in above if isinstance(block, Banner)]
        if len(paths) > 1:
            others = (
                (" ", Mark(f"{number}", "strong", "" if other == place else os.path.basename(other)))
                for number, other in enumerate(paths, 1)
            )
            blocks = [*blocks, Text(("Pages:", *others))]
        part = Table(table.label, table.columns, table.rows[start : start + _ROWS])
        yield place, replace(whole, blocks=[*blocks, part])


def _cells(model: str, steps: Sequence[Outcome], folder: str | None) -> list[Inline]:
    """One model: what its fold and proof say, and how its steps ended."""
    facts: dict[str, Any] = {}
    for outcome in steps:
        facts = {key: value for key, value in (outcome.report or {}).items() if key in _FACTS} | facts
    folded: Mapping[str, int] | None = facts.get("batchnorm")
    bad = [outcome for outcome in steps if outcome.status == "failed"]
    words = ", ".join(f"{count} {status}" for status, count in counts(steps).items() if count)
    status = Mark(f"✗ {', '.join(one.kind for one in bad)} failed", "bad") if bad else Mark(words, "good")
    pages = [made.path for one in steps for made in one.outputs if made.path.endswith(".html")]
    named: Inline = model
    if pages and folder is not None:
        named = Mark(model, "strong", _link(pages[0], folder))
    return [
        named,
        "–" if folded is None else f"{folded['before']} → {folded['after']}",
        bytes_text(facts.get("bytes")),
        Mark("equal ✓", "good") if facts.get("status") == "equal" else "–",
        number(facts.get("error")),
        number(facts.get("noise")),
        _ratios(steps),
        f"{sum(outcome.seconds for outcome in steps):.1f}",
        status,
    ]


def _link(page: str, folder: str) -> str:
    """A model's own page from the folder of the page of all: relative where both lie together."""
    start = f"{shown(folder)}/"
    if is_url(page) or is_url(folder):
        return page.removeprefix(start)
    return Path(os.path.relpath(page, folder or os.curdir)).as_posix()


def _ratios(steps: Sequence[Outcome]) -> str:
    """The ratios of folded to original that were measured, in the order of the cases."""
    rows = [row for outcome in steps for row in (outcome.report or {}).get("rows", ())]
    ratios = [row["ratio"]["median"] for row in rows if row.get("ratio") and row["side"] == "folded"]
    return ", ".join(f"{ratio:.3f}" for ratio in ratios[:3]) + (" …" if ratios[3:] else "") or "–"


_FACTS = ("batchnorm", "bytes", "status", "error", "noise")
