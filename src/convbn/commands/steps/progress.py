"""The progress of proofs, conversions and engine builds on a terminal."""

from __future__ import annotations

import time

from convbn.commands.steps.console import Console
from convbn.common.progress import Progress, bar

__all__ = ["BuildProgress", "bar_on"]


def bar_on(console: Console, doing: str) -> Progress:
    """What draws a bar of the phase at hand; within :meth:`Console.phase`, which takes it away."""

    def draw(phase: str, done: int, steps: int) -> None:
        console.progress(f"{doing} [{bar(done / max(steps, 1))}] {phase} {done}/{steps}")

    return draw


class BuildProgress:
    """Draws a bar with the name of the phase and the seconds so far.

    TensorRT nests its phases and does not say how long they take, so the bar is of the phase at hand.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    def __call__(self, phase: str, done: int, steps: int) -> None:
        """Draw; called by the build for every step."""
        seconds = time.monotonic() - self._start
        share = done / steps if steps else 0.0
        self._console.progress(f"building [{bar(share)}] {phase} {done}/{steps}, {seconds:.0f} s")
