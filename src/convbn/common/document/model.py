"""What a report consists of, whatever it is laid out for: paragraphs, lists, tables, pictures, details.

Text is a string, a :class:`Mark` or a tuple of both. No block knows a format: the renderers beside this
module escape, wrap, align and colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "MARKDOWN",
    "PAGE",
    "TERMINAL",
    "Banner",
    "Block",
    "Card",
    "Cards",
    "Cell",
    "Code",
    "Column",
    "Details",
    "Document",
    "Drawing",
    "Facts",
    "Group",
    "Inline",
    "Items",
    "Mark",
    "Picture",
    "Row",
    "Section",
    "Table",
    "Text",
    "plain",
    "shown",
    "verdict_mark",
]

TERMINAL, MARKDOWN, PAGE = 1, 2, 3
"""The formats, by how much they show: a block has the first that shows it as its ``depth``, and may have a ``last``."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Text with a meaning.

    Attributes:
        text: of it.
        kind: ``code``, ``strong``, ``small``, ``layer`` or ``norm`` (names in a network); or how good it is:
            ``good``, ``bad``, ``soft``.
        link: a file beside the page, by its path relative to it; only pages show it.
    """

    text: str
    kind: str
    link: str = ""


Drawing: TypeAlias = Callable[[], str]
"""What only a page shows is drawn when a page asks for it, which may be several times."""

Inline: TypeAlias = "str | Mark | tuple[Inline, ...]"


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    content: Inline
    kind: str = ""
    depth: int = TERMINAL
    last: int = PAGE


@dataclass(frozen=True, slots=True)
class Items:
    """A list of remarks; ``kind`` says what they are: ``notes``, ``gates``, ``reasons``, ``legend``."""

    items: Sequence[Inline]
    kind: str = "notes"
    depth: int = TERMINAL
    last: int = PAGE


@dataclass(frozen=True, slots=True)
class Facts:
    """Labels with what is to be said of them."""

    items: Sequence[tuple[str, Inline]]
    depth: int = TERMINAL


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be typed or copied."""

    text: str
    depth: int = MARKDOWN


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        kind: ``name`` for text, ``num`` for numbers; any other is a class of the page's stylesheet.
        depth: of it.
        last: the last format that has it.
        spare: above 0: a narrow terminal does without, the highest first.
        label: what a phone writes in front of its cells; its heading without.
    """

    name: Inline
    kind: str = "name"
    depth: int = TERMINAL
    last: int = PAGE
    spare: int = 0
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that is not simply text in its column.

    Attributes:
        content: of it.
        kind: instead of the column's.
        span: that many columns.
        label: instead of the column's.
        drawing: makes the SVG that the page shows instead of the content.
    """

    content: Inline
    kind: str | None = None
    span: int = 1
    label: str | None = None
    drawing: Drawing | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: as many cells as columns, spans counted."""

    cells: Sequence[Inline | Cell]
    kind: str = ""
    depth: int = TERMINAL


@dataclass(frozen=True, slots=True)
class Group:
    """Rows below a heading of their own."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Table:
    """A table, the first cell of each row its heading.

    Attributes:
        label: what it shows, for those who do not see it.
        columns: of it.
        rows: of it, or groups of rows.
        kind: class of the page's stylesheet.
        group: heading of the column that names the group, where a format has no rows for that.
        depth: of it.
    """

    label: str
    columns: Sequence[Column]
    rows: Sequence[Row | Group]
    kind: str = "plain"
    group: str = ""
    depth: int = TERMINAL

    @property
    def groups(self) -> list[Group]:
        """All rows in groups, those without one in a group without a title."""
        alone = [row for row in self.rows if isinstance(row, Row)]
        named = [group for group in self.rows if isinstance(group, Group)]
        return ([Group("", alone)] if alone else []) + named


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, which only pages show, with `drawing` that makes its HTML."""

    drawing: Drawing
    caption: str = ""
    kind: str = "card"
    depth: int = PAGE


@dataclass(frozen=True, slots=True)
class Card:
    """An answer in large letters.

    Attributes:
        kind: ``faster``, ``slower``, ``none``, ``off``, or ``reference`` for what is there to compare with.
        above: where it was found.
        side: of what, which the page says above it.
        big: the answer.
        under: its interval, in small letters.
        told: the answer in a sentence.
        note: what to expect of it.
    """

    kind: str
    above: str
    side: str
    big: str
    under: str
    told: str
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Cards:
    """Answers beside each other."""

    cards: Sequence[Card]
    depth: int = TERMINAL


@dataclass(frozen=True, slots=True)
class Banner:
    """The whole answer in one line, and what stands beside it for reference.

    Attributes:
        parts: each good, bad, soft or strong.
        reference: in grey, below.
        kind: ``failed`` where something did.
    """

    parts: Sequence[Mark]
    reference: str = ""
    kind: str = ""
    depth: int = TERMINAL


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks that are closed until they are wanted."""

    summary: Inline
    blocks: Sequence[Block]
    kind: str = ""
    depth: int = MARKDOWN
    last: int = PAGE


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks with a heading, and a paragraph that says how to read them, which only the page has."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""
    depth: int = TERMINAL


Block: TypeAlias = "Text | Items | Facts | Code | Table | Picture | Cards | Banner | Details | Section"


@dataclass(frozen=True, slots=True)
class Document:
    """A report.

    Attributes:
        title: of it.
        kind: what kind of report it is.
        under: a line below the title.
        blocks: of it.
        foot: a line at the end of the page.
        raw: what the page ends with, if there is room: what it was made of.
    """

    title: str
    kind: str
    under: str
    blocks: Sequence[Block]
    foot: str = ""
    raw: str = ""


_VERDICTS = {
    "faster": ("good", "▼"),
    "slower": ("bad", "▲"),
    "same": ("soft", "●"),
    "not proven": ("soft", "○"),
    "equal": ("good", "✓"),
    "different": ("bad", "✗"),
    "inconclusive": ("soft", "?"),
    "passed": ("good", "✓"),
    "failed": ("bad", "✗"),
    "not judged": ("bad", "?"),
}


def verdict_mark(words: str) -> Mark:
    """A verdict with its sign, so that it is not told by colour alone."""
    found = next((value for verdict, value in _VERDICTS.items() if words.startswith(verdict)), None)
    return Mark(words, "soft") if found is None else Mark(f"{found[1]} {words}", found[0])


def plain(content: Inline) -> str:
    """Text without its meaning."""
    if isinstance(content, Mark):
        return content.text
    return content if isinstance(content, str) else "".join(plain(part) for part in content)


def shown(blocks: Iterable[Block], at: int) -> list[Block]:
    """The blocks that a format shows."""
    return [block for block in blocks if block.depth <= at <= getattr(block, "last", PAGE)]
