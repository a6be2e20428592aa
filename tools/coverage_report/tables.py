"""Numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["counts", "number", "ratio", "table"]


def ratio(value: Mapping[str, float]) -> str:
    """A ratio with its interval."""
    return f"{value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def counts(numbers: Mapping[str, int]) -> str:
    """Numbers with their names, in a row."""
    return ", ".join(f"{name} {count}" for name, count in numbers.items()) or "none"


def number(value: float | None) -> str:
    """An error: two digits, 0 where there is none, a dash where it is not known."""
    return "–" if value is None else f"{value:.1e}" if value else "0"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """A table whose first columns are text; the rest is numbers, except a last one of words."""
    lines = [head, ["---" if i < left else "---:" for i in range(len(head))], *rows]
    if head[-1] in ("why the rest stays", "verdict"):
        lines[1] = [*lines[1][:-1], "---"]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
