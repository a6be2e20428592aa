"""Documents as one HTML page: no script, no request to anywhere, everything escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from convbn.common.document.model import (
    PAGE,
    Banner,
    Block,
    Cards,
    Cell,
    Code,
    Column,
    Details,
    Document,
    Facts,
    Group,
    Inline,
    Items,
    Picture,
    Row,
    Section,
    Table,
    Text,
    plain,
    shown,
)
from convbn.common.text import clean, printable

__all__ = ["MOST_BYTES", "fragment", "rendered"]

MOST_BYTES = 500_000
_LIMITS = ((300, 300), (300, 150), (300, 100), (300, 70), (300, 50), (300, 24), (100, 12), (24, 8), (8, 4))
"""Longest lists of the overview, and of what is folded away, that are tried until the page fits."""
_MOST_NOTES = 12
#: Nothing is loaded and nothing runs, whatever a browser makes of the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_JOINTS = re.compile(r"(?<=[±≤]) (?=\d)|(?<=\d) (?=(?:[%×]|ns|µs|ms|s|B|kB|MB|GB)(?!\w))")
"""Where a phone's lines may not end: between a number and its unit, or behind a sign that belongs to it."""
_SHOWN = "⟨U+{:04X}⟩"
_TAGS = {"code": "code", "strong": "strong", "small": "small"}


def rendered(document: Document, most_bytes: int = MOST_BYTES) -> str:
    """Lay a document out as a page of its own.

    Args:
        document: the report.
        most_bytes: of the page; lists are cut until it fits.

    Returns:
        HTML that opens from a file, prints, and reads on a phone, in light and dark.
    """
    longer = [(most_bytes // 1000, 300)] if most_bytes > MOST_BYTES else []
    for limit, fine in (*longer, *_LIMITS):
        writer = _Writer(limit, fine)
        page = writer.page(document, "")
        room = most_bytes - len(page.encode())
        if room > 0:
            return writer.page(document, document.raw) if len(document.raw.encode()) < room else page
    return page


def fragment(blocks: Iterable[Block]) -> str:
    """Blocks as HTML with their own styles, for a notebook's cell: what is outside of it is not touched."""
    body = "".join(_Writer(40, 40).block(block) for block in shown(blocks, PAGE))
    return f'<div class="convbn"><style>@scope{{{stylesheet()}}}</style>{body}</div>'


@cache
def stylesheet() -> str:
    """The look of the pages: light and dark, screen, phone and paper.

    Series colours are those of Okabe and Ito (2008), told apart with any colour vision; in the dark their
    lighter members take over. Nothing is said by colour alone.
    """
    return "".join(Path(__file__).with_name("style.css").read_text(encoding="utf-8").splitlines())


class _Writer:
    """Writes blocks, and of each list no more than a number of entries.

    Args:
        limit: most entries of a list.
        fine: most entries within what is folded away.
    """

    def __init__(self, limit: int, fine: int) -> None:
        self.limit, self.fine = limit, fine

    def page(self, document: Document, raw: str) -> str:
        """The whole page."""
        title = _text(document.title)
        body = "".join(self.block(block) for block in shown(document.blocks, PAGE))
        under = f"<p>{_text(document.under)}</p>" if document.under else ""
        foot = f"<footer>{_text(document.foot)}</footer>" if document.foot else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="color-scheme" content="light dark"><meta name="generator" content="convbn">'
            f"<title>{title}</title><style>{stylesheet()}</style></head>"
            f'<body><main><header><p class="brand"><span aria-hidden="true">◆</span> convbn · '
            f"{_text(document.kind)}</p><h1>{title}</h1>{under}</header>"
            f"{body}{raw}{foot}</main></body></html>\n"
        )

    def block(self, block: Block, level: int = 2) -> str:
        """One block; sections within sections have smaller headings."""
        match block:
            case Text():
                return f"<p{_class(block.kind)}>{_inline(block.content)}</p>"
            case Banner():
                return _banner(block)
            case Items():
                return self._items(block)
            case Facts():
                items = list(block.items)
                listed = "".join(f"<dt>{_text(a)}</dt><dd>{_inline(b)}</dd>" for a, b in items[: self.limit])
                return f'<div class="card"><dl>{listed}</dl></div>{_more(len(items), self.limit)}'
            case Code():
                return f"<pre>{escape(printable(clean(block.text, 4000), _SHOWN))}</pre>"
            case Cards():
                return self._cards(block)
            case Table():
                return self._table(block)
            case Picture():
                caption = f"<figcaption>{_text(block.caption)}</figcaption>" if block.caption else ""
                return f"<figure{_class(block.kind)}>{caption}{block.drawing()}</figure>"
            case Details():
                inner = _Writer(self.fine, self.fine)
                body = "".join(inner.block(one, level) for one in shown(block.blocks, PAGE))
                summary = f"<summary>{_inline(block.summary)}</summary>"
                return f"<details{_class(block.kind)}>{summary}{body}</details>" if body else ""
            case Section():
                body = "".join(self.block(one, level + 1) for one in shown(block.blocks, PAGE))
                lead = f'<p class="lead">{_text(block.lead)}</p>' if block.lead else ""
                heading = f"<h{level}>{_text(block.title)}</h{level}>"
                if level > 2:
                    return f"{heading}{lead}{body}" if body else ""
                return f"<section>{heading}{lead}{body}</section>" if body else ""

    def _items(self, items: Items) -> str:
        if not items.items:
            return ""
        most = _MOST_NOTES if items.kind == "notes" else self.limit
        listed = "".join(f"<li>{_inline(item)}</li>" for item in items.items[:most])
        return f'<ul class="{items.kind}">{listed}</ul>{_more(len(items.items), most)}'

    def _cards(self, cards: Cards) -> str:
        made = []
        for card in cards.cards[: self.limit]:
            under = f"<small>{_text(card.under)}</small>" if card.under else ""
            note = f'<p class="note">{_text(card.note)}.</p>' if card.note else ""
            above = " · ".join(filter(None, (card.above, card.side)))
            made.append(
                f'<div class="card verdict {card.kind}" role="listitem"><p class="mono">{_text(above)}</p>'
                f'<p class="big">{_text(card.big)}{under}</p><p>{_text(card.told)}</p>{note}</div>'
            )
        more = _more(len(cards.cards), self.limit)
        return f'<div class="verdicts" role="list" aria-label="Verdict">{"".join(made)}</div>{more}'

    def _table(self, table: Table) -> str:
        columns = [column for column in table.columns if column.last >= PAGE]
        head = "".join(f'<th scope="col"{_class(one.kind)}>{_inline(one.name)}</th>' for one in columns)
        left, bodies, count = self.limit, [], 0
        for group in table.groups:
            count += len(group.rows)
            rows = "".join(_row(row, table.columns) for row in group.rows[:left])
            left = max(0, left - len(group.rows))
            bodies.append(_group(group, len(columns), rows) if rows else "")
        if not count:
            return ""
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.label)}">'
            f'<table class="{table.kind}"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table></div>'
            f"{_more(count, self.limit)}"
        )


def _group(group: Group, columns: int, rows: str) -> str:
    head = ""
    if group.title:
        title = f'<span class="mono">{_text(group.title)}</span>'
        head = f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{title}</th></tr>'
    return f"<tbody>{head}{rows}</tbody>"


def _row(row: Row, columns: Sequence[Column]) -> str:
    return f"<tr{_class(row.kind)}>{''.join(_row_cells(row, columns))}</tr>"


def _row_cells(row: Row, columns: Sequence[Column]) -> Iterator[str]:
    place = 0
    for given in row.cells:
        cell = given if isinstance(given, Cell) else Cell(given)
        here = [one for one in columns[place : place + cell.span] if one.last >= PAGE]
        place, first = place + cell.span, place == 0
        if not here:
            continue
        column = here[0]
        kind = column.kind if cell.kind is None else cell.kind
        content = cell.drawing() if cell.drawing else _inline(cell.content)
        span = f' colspan="{len(here)}"' if len(here) > 1 else ""
        if first and kind == "name":
            yield f'<th scope="row" class="name">{content}</th>'
        else:
            label = next(text for text in (cell.label, column.label, plain(column.name)) if text is not None)
            phone = "" if cell.drawing or cell.span > 1 or not content else f' data-l="{_text(label)}"'
            yield f"<td{_class(kind if content else 'empty')}{phone}{span}>{content}</td>"


def _banner(banner: Banner) -> str:
    parts = "".join(f"<li>{_inline(part)}</li>" for part in banner.parts)
    reference = f"<p>{_text(banner.reference)}</p>" if banner.reference else ""
    return f'<div class="banner {banner.kind}"><ul aria-label="Result">{parts}</ul>{reference}</div>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _inline(content: Inline) -> str:
    if isinstance(content, tuple):
        return "".join(_inline(part) for part in content)
    if isinstance(content, str):
        return _text(content)
    text = _text(content.text)
    if content.link:
        return f'<a href="{_text(quote(content.link))}">{text}</a>'
    if content.kind in ("layer", "norm"):
        return f'<code class="chip {content.kind}">{text}</code>'
    if content.kind in _TAGS:
        return f"<{_TAGS[content.kind]}>{text}</{_TAGS[content.kind]}>"
    return f'<span class="tag {content.kind}">{text}</span>'


def _text(text: str, limit: int = 1000) -> str:
    """Any text, made visible and harmless."""
    short = text if len(text) <= limit else clean(text, limit)
    return escape(_JOINTS.sub("\u00a0", printable(short, _SHOWN)))


def _more(count: int, limit: int) -> str:
    """A sentence for what a limit left out."""
    return f'<p class="lead">{count - limit:,} more are in the JSON result.</p>' if count > limit else ""
