"""The kinds of models that can be folded, and the frontend of each. A new one is its folder and one row here."""

from __future__ import annotations

import sys

from convbn.errors import UsageError
from convbn.fuse.frontends.frontend import Frontend
from convbn.fuse.frontends.onnx import frontend as onnx
from convbn.fuse.frontends.torch import frontend as torch

__all__ = ["FRONTENDS", "frontend_of", "kind_of", "register"]

#: Every frontend by the kind of its models. The first whose class an object has takes it.
FRONTENDS: dict[str, Frontend] = {}


def register(*frontends: Frontend) -> None:
    """Add frontends to the table.

    Raises:
        UsageError: there is one for that kind of models already.
    """
    for frontend in frontends:
        if frontend.kind in FRONTENDS:
            raise UsageError(f"there is a frontend for {frontend.kind} already")
        FRONTENDS[frontend.kind] = frontend


register(*onnx.FRONTENDS)
register(*torch.FRONTENDS)


def frontend_of(model: object) -> Frontend | None:
    """What takes an object, without importing a framework that it cannot come from; None if nothing does."""
    for frontend in FRONTENDS.values():
        loaded = sys.modules.get(frontend.module)
        if loaded is not None and isinstance(model, getattr(loaded, frontend.name)):
            return frontend
    return None


def kind_of(model: object) -> str | None:
    """What kind of model an object is; None if it is none that can be folded."""
    frontend = frontend_of(model)
    return None if frontend is None else frontend.kind
