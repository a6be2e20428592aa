"""Text for people: tables, sentences and a progress line that only a terminal sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TextIO

from convbn.commands.steps.streams import writing_stdout
from convbn.common.document.model import Block, Column, Document, Row, Table
from convbn.common.document.terminal import laid_out, rendered, terminal_width, wants_colour
from convbn.common.progress import Progress, bar
from convbn.common.text import fitting, printable

if TYPE_CHECKING:
    from convbn.fuse.report import Report

__all__ = ["Console"]


class Console:
    """Where a command talks to.

    Args:
        json_on_stdout: stdout belongs to JSON, so sentences go to stderr.
        quiet: say nothing but errors.
        names: what files are called that stand for URLs.
    """

    def __init__(
        self, *, json_on_stdout: bool = False, quiet: bool = False, names: Mapping[str, str] | None = None
    ) -> None:
        self._names = names or {}
        self.out: TextIO = sys.stderr if json_on_stdout else sys.stdout
        self.quiet = quiet
        self._live = sys.stderr.isatty() and not quiet and os.environ.get("TERM") != "dumb"
        self._drawn = False
        self._colour = wants_colour(self.out)

    def say(self, text: str = "") -> None:
        """One line or paragraph."""
        if not self.quiet:
            self._draw("")
            with writing_stdout() if self.out is sys.stdout else nullcontext():
                self.out.write(text + "\n")

    def waits(self, what: str) -> None:
        """Work is held up: on a terminal the line of progress says so, elsewhere a line on stderr."""
        if self._live:
            self._draw(f"waiting: {what}")
        elif not self.quiet:
            sys.stderr.write(f"convbn: waiting: {what}\n")
            sys.stderr.flush()

    def written(self, path: object) -> None:
        """A file has been written."""
        self.say(f"written: {printable(self._names.get(str(path), path))}")

    def show(self, *blocks: Block) -> None:
        """Blocks of a report, as wide as the terminal."""
        if not self.quiet:
            for line in laid_out(blocks, colour=self._colour):
                self.say(line)

    def document(self, document: Document) -> None:
        """A whole report."""
        self.say(rendered(document, colour=self._colour).rstrip("\n"))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A plain table; the first column is text, the others are aligned to the right."""
        columns = [Column(name, "num" if index else "name") for index, name in enumerate(header)]
        self.show(Table("", columns, [Row([str(cell) for cell in row]) for row in rows]))

    def report(self, report: Report, *, would: bool = False) -> None:
        """What a fold did: counts, every BatchNorm that stays with its reason, and the proof."""
        from convbn.fuse.summary import fold_blocks

        if not self.quiet:
            self.show(*fold_blocks(report.to_dict(), would=would))

    @contextmanager
    def phase(self, doing: str, unit: str = "") -> Iterator[Progress]:
        """Show on a terminal what is being done, and take it away when it is done, whatever comes of it.

        Args:
            doing: what is done.
            unit: of the steps, if these are no pieces of work.

        Yields:
            What is told how far it is, and draws a bar of it.
        """

        def draw(phase: str, done: int, steps: int) -> None:
            far = f"[{bar(done / steps)}] {phase} {done}/{steps}{unit}" if steps else phase
            self._draw(f"{doing} {far}")

        self._draw(f"{doing} …")
        try:
            yield draw
        finally:
            self._draw("")

    def _draw(self, text: str) -> None:
        """Replace the progress line, on a terminal; it stays within one row, or it could not be taken away."""
        if self._live and (text or self._drawn):
            sys.stderr.write(f"\r\x1b[K{fitting(printable(text), terminal_width() - 1)}")
            sys.stderr.flush()
            self._drawn = bool(text)
