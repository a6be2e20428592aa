"""All that can be reached from an object, to be compared before and after."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch

__all__ = ["snapshot"]


def snapshot(item: Any, seen: dict[int, tuple[int, Any]] | None = None) -> Any:
    """Everything that can be reached from an object, with the identity of its tensors and containers."""
    seen = {} if seen is None else seen
    if id(item) in seen:
        return ("again", seen[id(item)][0])
    if item is None or isinstance(item, bool | int | float | str | bytes | type | FunctionType | torch.dtype):
        return item
    seen[id(item)] = (len(seen), item)  # held, so that no other object gets its id
    if isinstance(item, torch.Tensor):
        facts = (id(item), type(item), item.data_ptr(), item.requires_grad, tuple(item.shape))
        return (*facts, item.detach().contiguous().numpy().tobytes(), snapshot(vars(item), seen))
    if isinstance(item, dict):
        return (type(item), [(snapshot(key, seen), snapshot(value, seen)) for key, value in item.items()])
    if isinstance(item, list | tuple | set | frozenset):
        return (type(item), [snapshot(part, seen) for part in item])
    return (id(item), type(item), snapshot(getattr(item, "__dict__", {}), seen))
