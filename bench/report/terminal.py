"""The result as plain text for a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convbn.bench.report.document import document
from convbn.common.document import terminal

__all__ = ["render"]


def render(
    result: Mapping[str, Any],
    gates: Sequence[Mapping[str, Any]] = (),
    *,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """Lay the result out as text, as wide as the terminal; arguments as for :func:`document`."""
    return terminal.rendered(document(result, gates), width=width, colour=colour)
