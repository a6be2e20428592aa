"""What a dataflow graph does not show of a module: shared memory, kept tensors, replaced forwards."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType, NoneType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["kept_in_attributes", "overlapping", "patched_forwards", "stored_tensors"]


def overlapping(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of tensors that lie, in whole or in part, in the memory of another one, with its name."""
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + _extent(tensor), name)
        for name, tensor in tensors.items()
        if tensor.numel() and not tensor.is_meta
    )
    found: dict[str, str] = {}
    end, last = 0, ""
    for start, stop, name in spans:
        if start < end and tensors[name] is not tensors[last]:
            found[name] = last
            found[last] = name
        if stop > end:
            end, last = stop, name
    return found


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def patched_forwards(module: torch.nn.Module) -> set[str]:
    """Paths of modules with a forward set on the object, of which a copy may still call the original's."""
    found = set()
    for path, part in module.named_modules(remove_duplicate=False):
        forward = vars(part).get("forward")
        bound = isinstance(forward, MethodType) and forward.__self__ is part
        if forward is not None and not bound:
            found.add(path)
    return found


_PLAIN = (int, float, str, NoneType)
_OWN = ("_modules", "_parameters", "_buffers")


def stored_tensors(module: torch.nn.Module) -> dict[str, str]:
    """Modules whose forward put a tensor into an attribute during the capture, and the attribute."""
    import torch.fx
    from torch._subclasses.fake_tensor import FakeTensor

    found: dict[str, str] = {}
    traces = (FakeTensor, torch.fx.Proxy)
    for path, part in module.named_modules():
        for name, attribute in vars(part).items():
            if isinstance(attribute, _PLAIN):
                continue
            held = attribute.values() if isinstance(attribute, dict) else attribute
            items = held if isinstance(attribute, dict | list | tuple) else (attribute,)
            if any(isinstance(item, traces) for item in items):
                found[path] = name
    return found


def kept_in_attributes(module: torch.nn.Module) -> dict[int, str]:
    """Ids of modules that are held outside the module tree too, and what holds them."""
    import torch

    found: dict[int, str] = {}

    def search(item: object, where: str, depth: int) -> None:
        if isinstance(item, torch.nn.Module):
            found[id(item)] = where
        elif depth and isinstance(item, list | tuple | set | frozenset):
            for inner in item:
                search(inner, where, depth - 1)
        elif depth and isinstance(item, dict):
            for inner in item.values():
                search(inner, where, depth - 1)

    for path, part in module.named_modules():
        for name, attribute in vars(part).items():
            if name not in _OWN and not isinstance(attribute, _PLAIN):
                search(attribute, f"'{name}' of '{path or 'the model'}'", 3)
    return found
