"""Documents as GitHub Markdown: for a pull request comment (under 64 kB) or a step summary (under 1 MiB)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from convbn.common.document.model import (
    MARKDOWN,
    Banner,
    Block,
    Cards,
    Cell,
    Code,
    Details,
    Document,
    Facts,
    Inline,
    Items,
    Mark,
    Section,
    Table,
    Text,
    plain,
    shown,
)
from convbn.common.text import clean

__all__ = ["COMMENT_BYTES", "rendered"]

COMMENT_BYTES = 64_000
"""A little below the 65,536 characters that a comment may have."""

# Written as numbers, these are text in every position: no markup, table cell, link or mathematics.
_SPECIAL = {ord(char): f"&#{ord(char)};" for char in "\\`*_[]<>|&~#!$:\"'@"}
_NUMBERS = re.compile(r"[0-9., \[\]]*")
"""What cannot be markup, as a ratio with its interval, stays readable."""
_MOST_LINES = 400


def rendered(document: Document, *, most_bytes: int = COMMENT_BYTES) -> str:
    """Lay a document out.

    Args:
        document: the report.
        most_bytes: length of the text in UTF-8. A part that does not fit is shortened if it is a list or a
            table, else left out; the last line says what is missing.

    Returns:
        Markdown; names cannot break out of their cell, mention people or make links.
    """
    room = most_bytes - 400  # for the last line
    lines: list[str] = []
    cut = []
    parts = [("the title", [f"### {_text(document.title)}"])]
    parts += [(_name(block), list(_lines(block))) for block in shown(document.blocks, MARKDOWN)]
    for what, part in parts:
        kept = part
        if _size(kept) > room:
            kept = [] if "<details>" in kept else _shortened(kept, room)
            cut.append(what)
        if kept:
            lines += [*kept, ""]
            room -= _size(kept) + 1
    if cut:
        lines.append(f"*To stay within {most_bytes // 1000} kB, this leaves out some or all of {', '.join(cut)}; "
                     "the JSON result has everything.*")  # fmt: skip
    return "\n".join(lines).strip() + "\n"


def _name(block: Block) -> str:
    if isinstance(block, Section):
        return f"“{block.title}”"
    names = {Banner: "the verdict", Cards: "the comparisons", Table: "the table", Facts: "further facts"}
    return next((name for kind, name in names.items() if isinstance(block, kind)), "the notes")


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield _inline(block.content)
    elif isinstance(block, Banner):
        yield " · ".join(f"**{_inline(part)}**" for part in block.parts)
        if block.reference:
            yield from ("", _text(block.reference))
    elif isinstance(block, Items):
        yield from (f"- {_inline(item)}" for item in block.items[:_MOST_LINES])
    elif isinstance(block, Facts):
        yield from (f"- {_text(label)}: {_inline(value)}" for label, value in block.items[:_MOST_LINES])
    elif isinstance(block, Code):
        yield f"<code>{_text(block.text, 1000)}</code>"
    elif isinstance(block, Cards):
        yield from (f"- <code>{_text(card.above, 60)}</code> – {_text(card.told)}" for card in block.cards)
        yield from (f"- {_text(note)}." for note in dict.fromkeys(c.note for c in block.cards if c.note))
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Details):
        inside = [line for inner in shown(block.blocks, MARKDOWN) for line in ("", *_lines(inner))]
        if inside:
            yield from (
                "<details>",
                f"<summary>{_inline(block.summary)}</summary>",
                *inside,
                "",
                "</details>",
            )
    elif isinstance(block, Section):
        inside = [line for inner in shown(block.blocks, MARKDOWN) for line in ("", *_lines(inner))]
        if inside:
            yield from (f"#### {_text(block.title)}", *inside)


def _table(table: Table) -> Iterator[str]:
    keep = [i for i, column in enumerate(table.columns) if column.depth <= MARKDOWN]
    head = [_inline(table.columns[i].name) for i in keep]
    rule = ["--:" if table.columns[i].kind.startswith("num") else "---" for i in keep]
    if table.group:
        head, rule = [_text(table.group), *head], ["---", *rule]
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(rule)}|"
    for group in table.groups:
        for row in group.rows:
            if row.depth > MARKDOWN:
                continue
            cells: list[str] = []
            for cell in row.cells:
                span = cell.span if isinstance(cell, Cell) else 1
                text = _inline(cell.content if isinstance(cell, Cell) else cell)
                # What spans several columns is a sentence, and stands in the last of them.
                cells += [*["–"] * (span - 1), text]
            kept = [cells[i] for i in keep]
            start = [f"<code>{_text(group.title, 60)}</code>"] if table.group else []
            yield f"| {' | '.join([*start, *kept])} |"


def _inline(content: Inline) -> str:
    if isinstance(content, tuple):
        return "".join(_inline(part) for part in content)
    text = _text(plain(content))
    # Inside <code>, GitHub neither mentions people nor links issues.
    return (
        f"<code>{text}</code>"
        if isinstance(content, Mark) and content.kind in ("code", "layer", "norm")
        else text
    )


def _text(text: str, limit: int = 1000) -> str:
    """Any text, harmless in any place of a Markdown document; blanks at its ends stay."""
    if _NUMBERS.fullmatch(text):
        return text
    bare = clean(text, limit)
    start, end = (" " if text[:1] == " " else ""), (" " if text[-1:] == " " and bare else "")
    return f"{start}{bare.translate(_SPECIAL)}{end}"


def _shortened(lines: Sequence[str], room: int) -> list[str]:
    kept: list[str] = []
    for line in lines:
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return kept


def _size(lines: Sequence[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)
