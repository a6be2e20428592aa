"""Pieces of HTML. Everything that is not written here goes through :func:`esc`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path

from convbn.common.text import clean

__all__ = [
    "NO_BREAK",
    "cells",
    "definitions",
    "document",
    "esc",
    "group",
    "more",
    "notes",
    "scroll",
    "section",
    "simple_table",
    "tag",
    "verdict_card",
    "verdict_cards",
]

NO_BREAK = "\u00a0"
_MOST_NOTES = 12
#: Nothing is loaded and nothing runs, whatever a browser makes of the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_TAGS = {
    "faster": ("faster", "▼ faster"),
    "slower": ("slower", "▲ slower"),
    "no difference detected": ("none", "● no difference"),
    "baseline": ("baseline", "baseline"),
    "equal": ("equal", "✓ equal"),
    "different": ("different", "✗ different"),
    "inconclusive": ("inconclusive", "? inconclusive"),
}


def esc(value: object, limit: int = 120) -> str:
    """Any text, made visible, short and harmless."""
    return escape(clean(value, limit))


def tag(word: str) -> str:
    """A verdict with its sign, so that it is not told by colour alone."""
    kind, text = _TAGS.get(word, ("baseline", clean(word, 40)))
    return f'<span class="tag {kind}">{escape(text)}</span>'


def section(title: str, lead: str | None, body: str) -> str:
    """A section with a heading, and a paragraph that says how to read it."""
    lead = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


def cells(parts: Iterable[tuple[str, str, str]]) -> str:
    """Cells of a row: class, label that a phone shows in front of it, content."""
    return "".join(
        f'<td class="{kind}" data-l="{esc(label, 40)}">{content}</td>' for kind, label, content in parts
    )


def scroll(table: str, label: str) -> str:
    """A box in which a wide table scrolls instead of the page."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def simple_table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of finished cells, the first of each row its heading."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row" class="name">{row[0]}</th>'
        + cells(("name", name, cell or "–") for name, cell in zip(head[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return scroll(f'<table class="plain"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>', label)


def group(title: str, columns: int, rows: str) -> str:
    """Rows of a table below a heading of their own."""
    return (
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="{columns}">'
        f'<span class="mono">{esc(title)}</span></th></tr>{rows}</tbody>'
    )


def verdict_card(kind: str, above: str, big: str, below: str) -> str:
    """A card with an answer in large letters.

    Args:
        kind: its CSS class.
        above: what it is about.
        big: the answer, HTML.
        below: paragraphs, HTML.
    """
    return (
        f'<div class="card verdict {kind}" role="listitem"><p class="mono">{esc(above)}</p>'
        f'<p class="big">{big}</p>{below}</div>'
    )


def verdict_cards(cards: Iterable[str]) -> str:
    """Cards beside each other."""
    return f'<div class="verdicts" role="list" aria-label="Verdict">{"".join(cards)}</div>'


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """A list of terms with what they are."""
    return f"<dl>{''.join(f'<dt>{label}</dt><dd>{value}</dd>' for label, value in items)}</dl>"


def more(count: int, limit: int) -> str:
    """A sentence for what a limit left out."""
    return f'<p class="lead">{count - limit:,} more are in the JSON result.</p>' if count > limit else ""


def notes(lines: Sequence[str]) -> str:
    """Remarks below a table, the first few of them."""
    if not lines:
        return ""
    items = "".join(f"<li>{line}</li>" for line in lines[:_MOST_NOTES])
    return f'<ul class="notes">{items}</ul>{more(len(lines), _MOST_NOTES)}'


@cache
def stylesheet() -> str:
    """The look of the pages: light and dark, screen, phone and paper.

    Series colours are those of Okabe and Ito (2008), told apart with any colour vision; in the dark their
    lighter members take over. Nothing is said by colour alone.
    """
    return "".join(Path(__file__).with_name("style.css").read_text(encoding="utf-8").splitlines())


def document(title: str, kind: str, under: str, body: str) -> str:
    """A whole page.

    Args:
        title: escaped.
        kind: what kind of page it is, for the line above the title.
        under: the line below the title, escaped.
        body: of the page.

    Returns:
        HTML that loads nothing and runs nothing.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta name="generator" content="convbn"><title>{title}</title><style>{stylesheet()}</style></head>'
        f'<body><main><header><p class="brand"><span aria-hidden="true">◆</span> convbn · {escape(kind)}</p>'
        f"<h1>{title}</h1><p>{under}</p></header>{body}</main></body></html>\n"
    )
