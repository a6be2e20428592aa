"""Verification and measurement: runtimes, equality, protocol, statistics and reports.


The package is also the function of the same name: ``convbn.bench(model)`` calls
:func:`convbn.api.bench` (docs/decisions/0002-callable-rooms.md).
"""

from __future__ import annotations

import sys
import types
from typing import Any

if __name__ != "convbn.bench":
    raise ImportError(f"this folder is the package convbn.bench, not {__name__}: import convbn.bench")


class _CallableRoom(types.ModuleType):
    """A module that can be called; the signature users see is that of :func:`convbn.api.bench`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from convbn.api import bench

        return bench(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
