"""A context manager that makes garbage collection rarer while a model is processed."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["seldom_collected"]

_COLLECT_AFTER = 100_000
"""Objects, where Python's default is some hundreds or thousands."""


_lock = threading.Lock()
_before: list[tuple[int, int, int]] = []
"""What the threshold was when the first of those that work at the same time came, once for each of them."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for cycles less often: what a fold makes lives until it ends, and looking for it finds nothing.

    A threshold that is higher already, and 0 for never, stay as they are. When the last of the threads that are in
    here leaves, it is what it was.
    """
    with _lock:
        now = gc.get_threshold()
        _before.append(_before[0] if _before else now)
        if 0 < now[0] < _COLLECT_AFTER:
            gc.set_threshold(_COLLECT_AFTER, *now[1:])
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                gc.set_threshold(*before)
