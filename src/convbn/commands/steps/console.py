"""Text for people: tables, sentences and a progress line that only a terminal sees."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from convbn.commands.steps.streams import writing_stdout
from convbn.common.tables import columns
from convbn.common.text import printable

if TYPE_CHECKING:
    from convbn.fuse.report import Report

__all__ = ["Console"]

_WIDTH = 100
#: Folds that are listed unless all are wanted.
_FOLDS = 20


class Console:
    """Where a command talks to.

    Args:
        json_on_stdout: stdout belongs to JSON, so sentences go to stderr.
        quiet: say nothing but errors.
    """

    def __init__(self, *, json_on_stdout: bool = False, quiet: bool = False) -> None:
        self.out: TextIO = sys.stderr if json_on_stdout else sys.stdout
        self.quiet = quiet
        self._live = sys.stderr.isatty() and not quiet and os.environ.get("TERM") != "dumb"
        self._bold = self.out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def say(self, text: str = "") -> None:
        """One line or paragraph."""
        if not self.quiet:
            with writing_stdout() if self.out is sys.stdout else nullcontext():
                self.out.write(text + "\n")

    def written(self, path: object) -> None:
        """A file has been written."""
        self.say(f"written: {printable(path)}")

    def title(self, text: str) -> None:
        """A line that stands out on a terminal."""
        self.say(f"\x1b[1m{text}\x1b[0m" if self._bold else text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A plain table; the first column is text, the others are aligned to the right."""
        head, *lines = columns([[printable(cell) for cell in row] for row in (header, *rows)])
        self.title(head)
        for line in lines:
            self.say(line)

    def report(self, report: Report, *, would: bool = False) -> None:
        """What a fold did: counts, every BatchNorm that stays with its reason, and the proof."""
        self.table(
            ("", "before", "after"),
            (
                ("BatchNorm", report.batchnorm.before, report.batchnorm.after),
                ("nodes", report.nodes.before, report.nodes.after),
            ),
        )
        if report.merged:
            self.say(f"{len(report.merged)} further maps and branches {'would be ' if would else ''}merged")
        for note in report.notes:
            self.say(f"note: {printable(note)}")
        kept = sorted(report.kept, key=lambda entry: entry.reason)
        for reason, entries in groupby(kept, key=lambda entry: entry.reason):
            group = list(entries)
            self.say()
            self.title(
                f"{len(group)} {'would stay' if would else 'stay' if len(group) > 1 else 'stays'}: {reason}"
            )
            self.say(textwrap.fill(f"{group[0].reason.explanation}:", _WIDTH))
            for entry in group:
                self._paragraph(f"{printable(entry.name)}: {printable(entry.detail)}")
        if kept:
            self.say()
        self.say(_verdict(report.verify))
        proof = report.verify.get("proof")
        if proof is not None:
            self._paragraph(f"proof: {printable(proof['sentence'])}")
            unseen = [printable(fold["name"]) for fold in proof["folds"] if fold["how"] is None]
            if unseen:
                self._paragraph(f"not shown by any comparison: {', '.join(unseen)}")

    def folds(self, report: Report, *, everything: bool) -> None:
        """Which BatchNorm goes into what; long lists are shortened unless everything is wanted."""
        if not report.folded:
            return
        self.say()
        self.title("folds:")
        shown = report.folded if everything else report.folded[:_FOLDS]
        for fold in shown:
            into = ", ".join(map(printable, fold.into))
            self._paragraph(
                f"{printable(fold.name)} -> {into} ({fold.rule})"
                if into
                else f"{printable(fold.name)} ({fold.rule})"
            )
        if len(shown) < len(report.folded):
            self.say(f"  and {len(report.folded) - len(shown)} more; --all lists them")

    def _paragraph(self, text: str) -> None:
        self.say(
            textwrap.fill(
                text, _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
            )
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show on a terminal what is being done, and take it away when it is done."""
        if not self._live:
            yield
            return
        start = time.monotonic()
        sys.stderr.write(f"\r\x1b[K{name} …")
        sys.stderr.flush()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            sys.stderr.write("\r\x1b[K" if seconds < 1 else f"\r\x1b[K{name}: {seconds:.1f} s\n")
            sys.stderr.flush()

    def progress(self, text: str) -> None:
        """Replace the progress line, on a terminal."""
        if self._live:
            sys.stderr.write(f"\r\x1b[K{printable(text)[:_WIDTH]}")
            sys.stderr.flush()


def _verdict(verify: Mapping[str, Any]) -> str:
    """The proof in a sentence."""
    if verify["status"] == "equal":
        errors = [o["rel_error"] for o in verify["outputs"] if o.get("rel_error") is not None]
        worst = f"relative error at most {max(errors):.1e}" if errors else "identical"
        return f"outputs equal: {worst} over {verify['samples']} seeded inputs ({verify['runtime']})"
    if verify["status"] == "not run":
        return f"not verified: {verify['reason']}"
    return f"{verify['status']}: {verify['reason']}"
