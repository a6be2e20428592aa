"""The fold algebra: dataflow view, rules, plan and the two frontends that offer and edit it.

The package is also the function of the same name: ``convbn.fuse(model)`` calls
:func:`convbn.api.fuse` (docs/decisions/0002-callable-rooms.md).
"""

from __future__ import annotations

import sys
import types
from typing import Any

if __name__ != "convbn.fuse":
    raise ImportError(f"this folder is the package convbn.fuse, not {__name__}: import convbn.fuse")


class _CallableRoom(types.ModuleType):
    """A module that can be called; the signature users see is that of :func:`convbn.api.fuse`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from convbn.api import fuse

        return fuse(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
