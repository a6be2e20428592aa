"""One at a time in the process: a lock for what changes state that all threads see."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

__all__ = ["exclusive", "quiet", "without_warnings"]

_lock = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Let no other thread into a block like this one; a thread that is in one may enter another.

    For blocks that change and put back what belongs to the whole process: warning filters, logging,
    standard streams, PyTorch's switches and classes.
    """
    with _lock:
        yield


@contextmanager
def without_warnings() -> Iterator[None]:
    """Show no warning. The filters belong to the process, so this too is done by one thread at a time."""
    with exclusive(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Let this thread print nothing and warn of nothing, and log nothing in the process."""
    with without_warnings(), redirect_stdout(_Muted(sys.stdout)), redirect_stderr(_Muted(sys.stderr)):
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


class _Muted(io.TextIOBase):
    """A stream that swallows what its own thread writes, and hands on what others do."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._owner = threading.get_ident()

    def write(self, text: str) -> int:
        """Write what another thread says."""
        return len(text) if threading.get_ident() == self._owner else self._stream.write(text)


def _after_fork() -> None:
    """A child has one thread, and must not wait for a lock that another thread of its parent held."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
