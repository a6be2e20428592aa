"""Values as JSON holds them: one encoder for every report, record and result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

__all__ = ["JsonReady", "encoded"]

_AS_THEY_ARE = frozenset((str, int, bool, type(None)))


class JsonReady:
    """A dataclass that is written as an object with its fields, in their order.

    A field with ``metadata={"json": NAME}`` bears that name there.
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: only objects, arrays, strings, finite numbers, booleans and None."""
        return _object(self)


def encoded(value: Any) -> Any:
    """A value as JSON holds it; numbers that are not finite become None, and so does nothing else."""
    if type(value) in _AS_THEY_ARE:
        return value
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return _object(value)
    if isinstance(value, Mapping):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, str | PurePath) else value


def _object(value: Any) -> dict[str, Any]:
    return {
        field.metadata.get("json", field.name): encoded(getattr(value, field.name)) for field in fields(value)
    }
