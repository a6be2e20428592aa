"""How often Python looks for cyclic garbage while a model is worked on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["seldom_collected"]

_COLLECT_AFTER = 100_000
"""Objects, where Python's default is some hundreds or thousands."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for cycles less often: what a fold makes lives until it ends, and looking for it finds nothing.

    A threshold that is higher already, and 0 for never, stay as they are; afterwards it is what it was.
    """
    before = gc.get_threshold()
    if 0 < before[0] < _COLLECT_AFTER:
        gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
