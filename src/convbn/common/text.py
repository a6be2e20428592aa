"""Values as text: names that may be hostile, errors, shapes, times, sizes, ratios.

All text that comes from a model, a path or an error goes through :func:`clean` or :func:`printable`: names
are chosen by whoever made the file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

__all__ = [
    "bytes_text",
    "clean",
    "did_you_mean",
    "first_line",
    "fitting",
    "named_line",
    "number",
    "one_line",
    "percent",
    "plural",
    "printable",
    "ratio_text",
    "root_cause",
    "seconds_text",
    "shape_text",
    "text_width",
]

_NAME_LIMIT = 120
#: Categories that draw nothing or move what is drawn: controls, bidi overrides, surrogates, separators.
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: object, mark: str = "\\u{:04x}") -> str:
    """``text`` with what would move the cursor, colour or reorder the line made visible by ``mark``."""
    raw = str(text)
    if raw.isprintable():
        return raw
    return "".join(mark.format(ord(c)) if unicodedata.category(c) in _INVISIBLE else c for c in raw)


def clean(text: object, limit: int = _NAME_LIMIT) -> str:
    """Text that can be shown: invisible characters become ``⟨U+202E⟩``, the middle of long text ``…``.

    Args:
        text: anything; None becomes an empty text.
        limit: most characters of the result.

    Returns:
        One line without control characters and bidirectional overrides. It still has to be escaped for
        the format it goes to.
    """
    raw = "" if text is None else str(text)
    if len(raw) > limit:
        half = limit // 2
        raw = f"{raw[:half]}…{raw[len(raw) - half :]}"
    shown = printable(" ".join(raw.split()), "⟨U+{:04X}⟩")
    return shown if len(shown) <= limit * 2 else f"{shown[: limit * 2]}…"


def text_width(text: str) -> int:
    """How many columns of a terminal a text takes: two for each wide letter, as Chinese ones are."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def fitting(text: str, width: int) -> str:
    """As much of a text, from its start, as there are columns for."""
    if text.isascii():
        return text[: max(0, width)]
    ends = accumulate(map(_columns_of, text))
    return text[: sum(end <= width for end in ends)]


def _columns_of(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 0 if unicodedata.combining(letter) else 1


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """A question for the choice that is most like a word; None where none is."""
    from difflib import get_close_matches  # only for errors

    found = get_close_matches(word, list(choices), 1)
    return f"did you mean {printable(found[0])}?" if found else None


def one_line(error: object, limit: int | None = None) -> str:
    """The message of an error as one line, its class where it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def first_line(error: object, limit: int | None = None) -> str:
    """The first line of an error's message that says something, its class where none does."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:limit]


def named_line(error: object) -> str:
    """The class of an error and the first line of its message, if it has one."""
    name, line = type(error).__name__, first_line(error, 200)
    return name if line == name else f"{name}: {line}"


def root_cause(error: BaseException) -> str:
    """The error that began it, as its type and the first line of its message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return named_line(error)


def shape_text(shape: Iterable[int | None] | None, times: str = "x") -> str:
    """A shape as ``1x3x224x224``; ``?`` for an open dimension, which is None or −1."""
    if shape is None:
        return "unknown rank"
    return times.join("?" if size in (None, -1) else str(size) for size in shape) or "scalar"


def seconds_text(value: float) -> str:
    """A time with three or four significant digits and its unit, as in ``1.234 ms``."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            scaled = value / scale
            digits = 3 if scaled < 10 else 2 if scaled < 100 else 1
            return f"{scaled:.{digits}f} {unit}"
    return f"{value * 1e9:.0f} ns"


def bytes_text(value: float | None) -> str:
    """A size in decimal units, as in ``46.8 MB``; ``–`` where it is not known."""
    if value is None:
        return "–"
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def number(value: float | None) -> str:
    """A measured error in two significant digits; ``–`` where there is none."""
    return "–" if value is None else f"{value:.2g}"


def percent(share: float) -> str:
    """A share as ``95 %``."""
    return f"{share * 100:g} %"


def ratio_text(ratio: Mapping[str, Any]) -> str:
    """A time ratio, never without its interval: ``0.787 [0.781, 0.793]``."""
    return f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``1 model``, ``12 models``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
