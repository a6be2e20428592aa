"""Child processes start as users' do: with modules that are compiled already."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["compiled_once"]


@contextmanager
def compiled_once() -> Iterator[None]:
    """Let children keep compiled modules, whatever the caller's variables say; the first one makes them.

    An installed convbn is compiled; of a checkout, or under ``PYTHONDONTWRITEBYTECODE``, every process would
    compile it anew, which takes longer than all else that it does with a small model.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
