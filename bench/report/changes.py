"""What changed between two results, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from convbn.bench.results.compare import Change, ComparedResults
from convbn.common.document.markdown import COMMENT_BYTES
from convbn.common.document.markdown import rendered as rendered_markdown
from convbn.common.document.model import Column, Document, Inline, Row, Table, Text, verdict_mark
from convbn.common.document.terminal import rendered as rendered_terminal
from convbn.common.text import clean, plural, ratio_text, seconds_text

__all__ = ["markdown", "terminal", "verdict_sentences"]


def verdict_sentences(compared: ComparedResults) -> Iterator[str]:
    """The answer first: how many sides got faster or slower, and whether the machine drifted."""
    judged = [one for one in compared.changes if one.ratio is not None and not one.is_reference]
    counts = [
        f"{sum(one.verdict == verdict for one in judged)} {word}"
        for verdict, word in (
            ("slower", "slower"),
            ("faster", "faster"),
            ("no difference detected", "without a detected difference"),
        )
    ]
    yield f"{plural(len(judged), 'comparison')}: {', '.join(counts)}."
    if compared.machine:
        differences = "; ".join(compared.machine)
        yield f"These are different machines, so the times do not say which model is faster: {differences}."
    references = [one for one in compared.changes if one.is_reference and one.ratio is not None]
    drifts = [one.ratio.median for one in references if one.ratio and one.verdict != "no difference detected"]
    if drifts:
        worst = max(drifts, key=lambda value: abs(value - 1.0))
        yield (
            f"The baseline models, the same files in both, take up to {abs(worst - 1) * 100:.1f} % "
            f"{'more' if worst > 1 else 'less'} time than before: that much the machine or its software drifted. "
            "Sides are compared through them."
        )
    elif references:
        yield "The baseline models, the same files in both, show no drift; sides are compared through them."
    if any(
        one.basis == "time" and one.ratio is not None and not one.is_reference for one in compared.changes
    ):
        yield (
            "Where the baseline model is not the same file, times of two sessions are compared as they are; "
            "drift of the machine is not in these intervals."
        )
    if compared.software:
        yield f"Software changed: {'; '.join(compared.software)}."
    for verdict, word in (
        ("only before", "only the old result has"),
        ("only after", "only the new result has"),
    ):
        count = sum(one.verdict == verdict for one in compared.changes)
        if count:
            yield f"{word.capitalize()} times for {plural(count, 'row')}."


def document(compared: ComparedResults) -> Document:
    """What changed, as a document: sentences, then every change."""
    left, right = Column("case"), "num"
    columns = [
        left,
        Column("runtime", spare=0),
        Column("side"),
        Column("before", right, spare=2),
        Column("after", right, spare=1),
        Column("after / before [interval]", right),
        Column("result", "result"),
    ]
    rows = [Row(_cells(change)) for change in compared.changes]
    told = [Text(sentence) for sentence in verdict_sentences(compared)]
    return Document("What changed", "comparison", "", [*told, Table("Changes", columns, rows)])


def terminal(compared: ComparedResults, *, width: int | None = None, colour: bool = False) -> str:
    """Lay the changes out as text."""
    return rendered_terminal(document(compared), width=width, colour=colour)


def markdown(compared: ComparedResults, *, most_bytes: int = COMMENT_BYTES) -> str:
    """Lay the changes out as Markdown of so many bytes."""
    return rendered_markdown(document(compared), most_bytes=most_bytes)


def _cells(change: Change) -> Sequence[Inline]:
    before, after = ("–" if value is None else seconds_text(value) for value in (change.before, change.after))
    ratio = "–" if change.ratio is None else ratio_text(change.ratio.to_dict())
    verdict = f"{change.verdict} (yardstick)" if change.is_reference else change.verdict
    if change.basis == "time" and change.ratio is not None and not change.is_reference:
        verdict += " (unpaired)"
    return (
        clean(change.case, 40),
        clean(change.runtime, 36),
        clean(change.side, 36),
        before,
        after,
        ratio,
        verdict_mark(verdict),
    )
