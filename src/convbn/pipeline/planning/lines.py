"""Where in a TOML file a key stands, found with the parser itself: at the first line without which it is not there."""

from __future__ import annotations

import tomllib
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

__all__ = ["line_of"]


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The number of the line at which a key gets its value, or a table its header.

    Args:
        text: well-formed TOML.
        path: keys, and numbers of tables in lists, from the outside in; what is not there counts as its table.
    """
    lines = text.splitlines(keepends=True)
    ends = [0, *accumulate(map(len, lines))]

    def there(count: int) -> bool:
        """Whether so many lines have it, with as many more as the statement goes on for that they end in."""
        while True:
            try:
                return _has(tomllib.loads(text[: ends[count]]), path)
            except tomllib.TOMLDecodeError:
                count += 1

    while path and not there(len(lines)):
        path = path[:-1]
    return max(1, bisect_left(range(len(lines)), True, key=there))


def _has(value: Any, path: Sequence[str | int]) -> bool:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
