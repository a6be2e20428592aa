"""A progress bar as text."""

from __future__ import annotations

__all__ = ["bar"]

_CELLS = 20


def bar(share: float) -> str:
    """A bar of 20 cells, of which a share between 0 and 1 is full."""
    full = round(share * _CELLS)
    return "█" * full + "·" * (_CELLS - full)
