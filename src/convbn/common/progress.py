"""Progress: what is told of it, and a bar as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "bar", "silent"]

#: Is told a phase, the steps that are done, and the steps in all.
Progress: TypeAlias = Callable[[str, int, int], object]

_CELLS = 20


def silent(_phase: str, _done: int, _steps: int) -> None:
    """Tell nobody."""


def bar(share: float) -> str:
    """A bar of 20 cells, of which a share between 0 and 1 is full."""
    full = round(share * _CELLS)
    return "█" * full + "·" * (_CELLS - full)
