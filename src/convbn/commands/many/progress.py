"""The progress of many steps on a terminal: a line for each that runs, counts, and the time that is left."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Self

from convbn.common.text import clean, printable
from convbn.pipeline.runners.pool import Event
from convbn.pipeline.step import Step

__all__ = ["Progress"]

_EVERY = 0.2
_LINES = 12


class Progress:
    """A listener for :func:`convbn.pipeline.runners.pool.run_steps`.

    Where stderr is no terminal it says nothing but what a run waits for, once.

    Args:
        total: number of steps.
        quiet: say nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._total = total
        self._quiet = quiet
        self._waiting: str | None = None
        self._told: set[str] = set()
        self._live = sys.stderr.isatty() and not quiet and os.environ.get("TERM") != "dumb"
        self._running: dict[Step, float] = {}
        self._counts = dict.fromkeys(("done", "cached", "failed", "cancelled"), 0)
        self._begun = self._drawn = time.monotonic()
        self._lines = 0

    def __call__(self, event: Event) -> None:
        """Count, and draw again if the last time is long enough ago."""
        now = time.monotonic()
        if event.name == "started" and event.step is not None:
            self._running[event.step] = now
        elif event.outcome is not None and event.step is not None:
            self._running.pop(event.step, None)
            self._counts[event.outcome.status] += 1
        if event.name == "tick":
            self._wait(event.waiting)
        if self._live and now - self._drawn >= _EVERY:
            self._drawn = now
            self._draw(self.lines(now))

    def _wait(self, waiting: str | None) -> None:
        self._waiting = waiting
        if waiting is not None and waiting not in self._told and not (self._live or self._quiet):
            self._told.add(waiting)
            sys.stderr.write(f"convbn: waiting: {waiting}\n")
            sys.stderr.flush()

    def lines(self, now: float) -> list[str]:
        """What there is to see."""
        width = shutil.get_terminal_size().columns - 1
        shown = list(self._running.items())[:_LINES]
        lines = [f"  {clean(step.name, 80)} {_clock(now - start)}"[:width] for step, start in shown]
        if len(self._running) > len(shown):
            lines.append(f"  and {len(self._running) - len(shown)} more")
        if self._waiting is not None:
            lines.append(f"  waiting: {self._waiting}"[:width])
        return [*lines, self._counted(now)[:width]]

    def _counted(self, now: float) -> str:
        told = [f"{count} {status}" for status, count in self._counts.items() if count]
        finished = sum(self._counts.values())
        told.append(f"{self._total - finished} of {self._total} left")
        worked = self._counts["done"] + self._counts["failed"]
        if worked:
            told.append(f"about {_clock((now - self._begun) / worked * (self._total - finished))}")
        return " · ".join(told)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        if self._live:
            self._draw([])

    def _draw(self, lines: list[str]) -> None:
        up = f"\x1b[{self._lines}A" if self._lines else ""
        sys.stderr.write("\r" + up + "\x1b[J" + "".join(f"{printable(line)}\n" for line in lines))
        sys.stderr.flush()
        self._lines = len(lines)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02} min"
