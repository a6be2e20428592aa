"""Documents as lines for a terminal or a log, as wide as it is, in colour where it has any."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import TextIO

from convbn.common.document.model import (
    TERMINAL,
    Banner,
    Block,
    Cards,
    Cell,
    Code,
    Column,
    Details,
    Document,
    Facts,
    Inline,
    Items,
    Mark,
    Row,
    Section,
    Table,
    Text,
    plain,
    shown,
)
from convbn.common.text import fitting, printable, text_width

__all__ = ["Painter", "laid_out", "rendered", "terminal_width", "wants_colour"]

_UNKNOWN = 100
"""Columns where nobody says how many there are."""
_WIDEST_TEXT = 120
"""A paragraph of longer lines is hard to read, however wide the terminal is."""
_LEAST_NAME = 12
"""Columns that a name keeps in a table that is too wide."""
_UNIT = re.compile(r"(%|×|ns|µs|ms|s|kB|MB|GB|B)[).,;:]*$")
_COLOURS = {"good": "32", "bad": "31", "soft": "2", "small": "2", "strong": "1", "norm": "36"}


def terminal_width() -> int:
    """Columns of the terminal: what ``COLUMNS`` says, else its own answer, else 100."""
    return max(40, shutil.get_terminal_size((_UNKNOWN, 24)).columns)


def wants_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal with colours, and nobody said ``NO_COLOR``."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def rendered(document: Document, *, width: int | None = None, colour: bool = False) -> str:
    """Lay a document out.

    Args:
        document: the report.
        width: columns; those of the terminal without.
        colour: whether verdicts are coloured.

    Returns:
        Lines without control characters but those of colours, ending in a newline.
    """
    painter = Painter(terminal_width() if width is None else width, colour)
    return "\n".join(painter.document(document)) + "\n"


def laid_out(blocks: Sequence[Block], *, width: int | None = None, colour: bool = False) -> list[str]:
    """Blocks as lines; see :func:`rendered`."""
    painter = Painter(terminal_width() if width is None else width, colour)
    lines: list[str] = []
    for block in shown(blocks, TERMINAL):
        found = list(painter.block(block))
        lines += ["", *found] if lines and found and isinstance(block, Section) else found
    return lines


class Painter:
    """Draws blocks as lines.

    Args:
        width: most columns of a line.
        colour: whether marks are coloured.
    """

    def __init__(self, width: int, colour: bool) -> None:
        self.width, self.colour = width, colour

    def document(self, document: Document) -> Iterator[str]:
        """All of it."""
        yield from self.paragraph(Mark(document.title, "strong"))
        for block in shown(document.blocks, TERMINAL):
            lines = list(self.block(block))
            if lines:
                yield ""
                yield from lines

    def block(self, block: Block) -> Iterator[str]:
        """A block as lines."""
        if isinstance(block, Text):
            yield from self.paragraph(block.content)
        elif isinstance(block, Banner):
            for parts in self._rows(block.parts):
                yield from self.paragraph(joined(parts))
            if block.reference:
                yield from self.paragraph(Mark(block.reference, "soft"), indent=2)
        elif isinstance(block, Items):
            for item in block.items:
                yield from self.paragraph(item, start="  ", indent=6)
        elif isinstance(block, Facts):
            for label, value in block.items:
                yield from self.paragraph((Mark(f"{label}: ", "soft"), value), indent=2)
        elif isinstance(block, Code):
            yield block.text
        elif isinstance(block, Cards):
            for card in block.cards:
                yield from self.paragraph((Mark(f"{card.above}: ", "strong"), card.told), indent=2)
            for above, note in {card.note: card.above for card in block.cards if card.note}.items():
                yield from self.paragraph(Mark(f"{note}: {above}", "soft"), indent=2)
        elif isinstance(block, Table):
            yield from self.table(block)
        elif isinstance(block, Section | Details):
            lines = [line for inner in shown(block.blocks, TERMINAL) for line in self.block(inner)]
            if lines:
                title = block.title if isinstance(block, Section) else plain(block.summary)
                yield from self.paragraph(Mark(title, "strong"))
                yield from lines

    def _rows(self, parts: Sequence[Mark]) -> Iterator[list[Mark]]:
        """Parts of a banner, as many in a row as fit: a line does not end within one that has room in the next."""
        row: list[Mark] = []
        for part in parts:
            whole = text_width(" · ".join(_visible(one) for one in (*row, part)))
            if row and whole > min(self.width, _WIDEST_TEXT):
                yield row
                row = []
            row.append(part)
        yield row

    def paragraph(self, content: Inline, *, start: str = "", indent: int = 0) -> Iterator[str]:
        """Text as lines that begin with ``start``, or from the second on with that many blanks."""
        limit = min(self.width, _WIDEST_TEXT)
        line, length = start, len(start)
        room = limit - max(indent, len(start))
        whole = _with_units(_words(content), room)
        words = [(piece, kind) for word, kind in whole for piece in _pieces_of(word, room)]
        fresh = True
        for word, kind in words:
            if not fresh and length + 1 + text_width(word) > limit:
                yield line.rstrip()
                line, length, fresh = " " * indent, indent, True
            space = "" if fresh else " "
            line += space + self.paint(word, kind)
            length, fresh = length + len(space) + text_width(word), False
        if words:
            yield line.rstrip()

    def paint(self, text: str, kind: str) -> str:
        """Text in the colour of its kind."""
        code = _COLOURS.get(kind) if self.colour else None
        return text if code is None or not text.strip() else f"\x1b[{code}m{text}\x1b[0m"

    def table(self, table: Table) -> Iterator[str]:
        """Columns under their headings, as many as there is room for."""
        keep = [i for i, column in enumerate(table.columns) if column.depth <= TERMINAL]
        groups = [(g.title, [row for row in g.rows if row.depth <= TERMINAL]) for g in table.groups]
        rows = [_cells(row, table.columns) for _, found in groups for row in found]
        indent = 2 if any(title for title, _ in groups) else 0
        if not rows:
            return
        while True:
            widths = _widths(table.columns, rows, keep)
            excess = indent + sum(widths) + 2 * (len(keep) - 1) - self.width
            spare = max(keep, key=lambda i: table.columns[i].spare)
            if excess <= 0 or not table.columns[spare].spare:
                break
            keep.remove(spare)
        for place, i in enumerate(keep):  # what stands in brackets behind a verdict goes before names are cut
            if excess > 0 and table.columns[i].kind == "result":
                least = max(text_width(_visible(row[i]).partition(" (")[0]) for row in rows)
                gained = min(
                    excess, max(0, widths[place] - max(least, text_width(_visible(table.columns[i].name))))
                )
                widths[place] -= gained
                excess -= gained
        _narrow(widths, [table.columns[i] for i in keep], excess)
        head = [_visible(table.columns[i].name) for i in keep]
        if any(head):
            line = self._line([Mark(cell, "strong") for cell in head], table.columns, keep, widths)
            yield " " * indent + line.rstrip()
        for title, found in groups:
            if title:
                yield self.paint(_visible(title), "strong")
            for row in found:
                cells = _cells(row, table.columns)
                wide = next((cell for cell in row.cells if isinstance(cell, Cell) and cell.span > 1), None)
                if wide is not None:
                    told = (_visible(cells[keep[0]]), "  ", wide.content)
                    yield from self.paragraph(told, start=" " * indent, indent=indent + 2)
                    continue
                line = self._line([cells[i] for i in keep], table.columns, keep, widths)
                yield " " * indent + line.rstrip()

    def _line(
        self, cells: Sequence[Inline], columns: Sequence[Column], keep: Sequence[int], widths: Sequence[int]
    ) -> str:
        parts = []
        for cell, index, width in zip(cells, keep, widths, strict=True):
            text = _shortened(_visible(cell), width, name=columns[index].kind == "name")
            padding = " " * (width - text_width(text))
            painted = self.paint(text, cell.kind) if isinstance(cell, Mark) else text
            parts.append(padding + painted if columns[index].kind.startswith("num") else painted + padding)
        return "  ".join(parts)


def joined(parts: Sequence[Mark], by: str = " · ") -> tuple[Inline, ...]:
    """Marks in a row."""
    return tuple(part for i, mark in enumerate(parts) for part in ((by, mark) if i else (mark,)))


def _with_units(words: Iterator[tuple[str, str]], room: int) -> Iterator[tuple[str, str]]:
    """A number and its unit as one word, as lines do not end between them, nor behind a sign that belongs to it."""
    held: tuple[str, str] | None = None
    for word, kind in words:
        if held is not None:
            joint = f"{held[0]} {word}"
            sign = held[0][-1] in "±≤"
            bound = sign or (held[0][-1].isdigit() and _UNIT.match(word))
            if bound and text_width(joint) <= room and held[1] == kind:
                held = joint, kind
                continue
            yield held
        held = word, kind
    if held is not None:
        yield held


def _pieces_of(word: str, width: int) -> Iterator[str]:
    """A word in pieces that fit into a line."""
    while word:
        piece = fitting(word, width) or word[0]
        yield piece
        word = word[len(piece) :]


def _visible(content: Inline) -> str:
    return printable(plain(content), "⟨U+{:04X}⟩")


def _words(content: Inline, kind: str = "") -> Iterator[tuple[str, str]]:
    """Words with the kind of mark they stand in; parts without a blank between them are one word."""
    pieces = list(_pieces(content, kind))
    word, first = "", ""
    for text, of in pieces:
        for index, part in enumerate(text.split(" ")):
            if index and word:
                yield word, first
                word = ""
            if part:
                first = of if not word else first
                word += part
    if word:
        yield word, first


def _pieces(content: Inline, kind: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, tuple):
        for part in content:
            yield from _pieces(part, kind)
    else:
        yield _visible(content), content.kind if isinstance(content, Mark) else kind


def _cells(row: Row, columns: Sequence[Column]) -> list[Inline]:
    """One content a column; nothing where one spans several."""
    cells: list[Inline] = []
    for cell in row.cells:
        if isinstance(cell, Cell):
            cells += [cell.content] if cell.span == 1 else [""] * cell.span
        else:
            cells.append(cell)
    return cells + [""] * (len(columns) - len(cells))


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Inline]], keep: Sequence[int]) -> list[int]:
    return [
        max(text_width(_visible(cell)) for cell in (columns[i].name, *(row[i] for row in rows))) for i in keep
    ]


def _narrow(widths: list[int], columns: Sequence[Column], excess: int) -> None:
    """Take from the columns of text what does not fit: first from the names in the first, then from the widest."""
    if excess <= 0:
        return
    taken = min(excess, max(0, widths[0] - _LEAST_NAME))
    widths[0] -= taken
    for _ in range(excess - taken):
        texts = [i for i, column in enumerate(columns) if not column.kind.startswith("num") and widths[i] > 8]
        if texts:
            widths[max(texts, key=lambda i: widths[i])] -= 1


def _shortened(text: str, width: int, *, name: bool) -> str:
    """Names without their middle, a verdict without what stands in brackets behind it."""
    if text_width(text) <= width:
        return text
    verdict = text.partition(" (")[0]
    if not name and verdict != text and text_width(verdict) <= width:
        return verdict
    half = (width - 1) // 2
    end = fitting(text[::-1], half)[::-1]
    return f"{fitting(text, width - 1 - half)}…{end}"
