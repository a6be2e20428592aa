"""Forward outputs that are plain objects and no pytree, taken apart into their fields for the tracers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["fields_of", "nest_of"]


def fields_of(item: Any) -> Mapping[Any, Any] | None:
    """What an object consists of; None for one that is a value by itself."""
    import numpy as np

    if item is None or isinstance(item, bool | int | float | complex | str | bytes | np.ndarray | np.generic):
        return None
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if isinstance(item, Mapping):
        return item
    if isinstance(item, list | tuple):
        return dict(enumerate(item))
    held = getattr(item, "__dict__", None)
    return None if held is None or callable(item) else dict(held)


def nest_of(result: Any, around: tuple[int, ...] = ()) -> Any:
    """A result with the fields of plain objects in the objects' place, for tracers that take nests alone.

    Args:
        result: of a forward.
        around: ids of the objects that it is a field of.
    """
    import torch
    import torch.fx
    from torch.utils import _pytree as pytree

    def taken_apart(leaf: Any) -> Any:
        if id(leaf) in around:
            return None
        plain = not isinstance(
            leaf, torch.Tensor | torch.fx.Proxy | torch.SymInt | torch.SymFloat | torch.SymBool
        )
        fields = fields_of(leaf) if plain else None
        if fields is None:
            return leaf
        return {str(name): nest_of(item, (*around, id(leaf))) for name, item in fields.items()}

    return pytree.tree_map(taken_apart, result)
