"""What a dataflow graph does not show of a module: shared memory, kept tensors, replaced forwards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MethodType, NoneType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "OWN",
    "held_in_attributes",
    "kept_in_attributes",
    "overlapping",
    "patched_forwards",
    "run_by",
    "stored_tensors",
]


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
        if forward is not None and not bound and run_by(part) is None:
            found.add(path)
    return found


def run_by(part: object) -> torch.nn.Module | None:
    """The module that another one only runs: DataParallel, DistributedDataParallel, or what torch.compile gave."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    held: dict[str, Any] = getattr(part, "_modules", {})
    if isinstance(part, DataParallel | DistributedDataParallel):
        return held.get("module")
    # torch.compile's class is too slow to import for a question.
    return held.get("_orig_mod") if type(part).__name__ == "OptimizedModule" else None


_PLAIN = (int, float, str, NoneType)
_AT_ONCE = frozenset((*_PLAIN, bool))
_DICTS = (dict, OrderedDict)
OWN = ("_modules", "_parameters", "_buffers")
"""The attributes in which a module holds its children and tensors."""
_DEPTH = 4


def held_in_attributes(part: torch.nn.Module) -> Iterator[tuple[str, object]]:
    """What a module's attributes hold, beside its children, parameters and buffers, also in containers there."""
    for name, attribute in vars(part).items():
        # Most hold a number or an empty dict of hooks.
        if type(attribute) in _AT_ONCE or name in OWN or (type(attribute) in _DICTS and not attribute):
            continue
        waiting: list[tuple[object, int]] = [(attribute, 0)]
        while waiting:
            item, depth = waiting.pop()
            if isinstance(item, _PLAIN):
                continue
            yield name, item
            inner = item.values() if isinstance(item, dict) else item
            if depth < _DEPTH and isinstance(item, dict | list | tuple | set | frozenset):
                waiting.extend((one, depth + 1) for one in inner)  # type: ignore[attr-defined]


def stored_tensors(module: torch.nn.Module) -> dict[str, str]:
    """Modules whose forward put a tensor into an attribute during the capture, and the attribute."""
    import torch.fx
    from torch._subclasses.fake_tensor import FakeTensor

    return {
        path: name
        for path, part in module.named_modules()
        for name, item in held_in_attributes(part)
        if isinstance(item, FakeTensor | torch.fx.Proxy)
    }


def kept_in_attributes(module: torch.nn.Module) -> dict[int, str]:
    """Ids of modules that are held outside the module tree too, and what holds them."""
    import torch

    return {
        id(item): f"'{name}' of '{path or 'the model'}'"
        for path, part in module.named_modules()
        for name, item in held_in_attributes(part)
        if isinstance(item, torch.nn.Module)
    }
