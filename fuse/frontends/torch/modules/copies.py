"""Copies of a module, with its own tensors or with shared ones, and what cannot be copied or folded."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from convbn.common.text import named_line
from convbn.errors import BadInputError
from convbn.fuse.frontends.torch.modules.hidden_state import OWN, held_in_attributes, run_by

if TYPE_CHECKING:
    import torch

__all__ = ["checked", "duplicate", "unwrapped"]


def unwrapped(module: object) -> object:
    """A module out of the wrappers that only run it: DataParallel, DistributedDataParallel, torch.compile."""
    while (inner := run_by(module)) is not None:
        module = inner
    return module


def checked(module: object) -> torch.nn.Module:
    """The module itself, out of the wrappers that only run it.

    Raises:
        BadInputError: no module, one whose code cannot be edited, or one without numbers.
    """
    import torch

    inner = unwrapped(module)
    if isinstance(inner, torch.jit.ScriptModule):
        raise BadInputError(
            "a ScriptModule's code cannot be edited",
            source=type(inner).__name__,
            hint="fold the module it was scripted or traced from",
        )
    if not isinstance(inner, torch.nn.Module):
        raise BadInputError(f"{type(inner).__name__} is not a torch.nn.Module")
    sharding = next((p for p in inner.modules() if _is_sharding(p)), None)
    if sharding is not None:
        raise BadInputError(
            "its parameters are sharded over processes",
            source=type(sharding).__name__,
            hint="fold the full module, before it is sharded or from a full state dict",
        )
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise BadInputError(
                f"'{name}' is lazy and has no shape yet",
                source=type(inner).__name__,
                hint="run the module once before folding it",
            )
        if tensor.is_meta:
            raise BadInputError(
                f"'{name}' is on the meta device and holds no numbers",
                source=type(inner).__name__,
                hint="load a checkpoint first",
            )
    return inner


def _is_sharding(part: torch.nn.Module) -> bool:
    """Whether a module is one of FSDP's, of either kind; told by name, since importing FSDP takes seconds."""
    homes = ("torch.distributed.fsdp", "torch.distributed._composable")
    return any(kind.__module__.startswith(homes) for kind in type(part).__mro__)


def duplicate(
    module: torch.nn.Module,
    *,
    share: bool,
    blank: Iterable[torch.Tensor] = (),
    memo: Mapping[int, Any] | None = None,
) -> torch.nn.Module:
    """A copy of a module.

    Args:
        module: what to copy; it is not touched.
        share: let the copy hold the very parameters and buffers of the original.
        blank: parameters of which the copy needs all but the numbers, since they will be written anyway.
        memo: what stands in the copy instead of some objects, by their ids, as for ``copy.deepcopy``.

    Raises:
        BadInputError: the module cannot be copied.
    """
    import torch

    memo = dict(memo or {})
    own = {id(part) for part in module.modules()}
    for part in module.modules():
        for item in (*part._buffers.values(), *(item for _, item in held_in_attributes(part))):
            if isinstance(item, torch.Tensor) and item.grad_fn is not None:
                # What a forward keeps, or a hook computes, has a history, which deepcopy refuses to copy.
                memo[id(item)] = item.detach().clone()
    if share:
        tensors = (*module.parameters(), *module.buffers())
        memo = {id(tensor): tensor for tensor in tensors} | memo
    for tensor in blank:
        if type(tensor) is torch.nn.Parameter:
            empty = torch.empty_like(tensor.detach(), memory_format=torch.preserve_format)
            memo[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad)
    try:
        copied: torch.nn.Module = _deepcopied(module, memo)
        same = next((part for part in copied.modules() if id(part) in own), None)
        if same is not None:
            raise TypeError(f"a {type(same).__name__} in it gives itself as its copy")
        flags = {path: part.training for path, part in module.named_modules()}
        for path, part in copied.named_modules():
            if part.training != flags.get(path, part.training):
                part.training = flags[path]  # a class may build its copies anew, which then train
        return copied
    except Exception as error:  # whatever an attribute of the user's class raises
        raise BadInputError(
            f"the module cannot be copied ({named_line(error)})",
            source=type(module).__name__,
            hint="remove the attribute that copy.deepcopy cannot copy",
        ) from error


_AS_THEY_ARE = frozenset((int, float, bool, str, bytes, type(None)))


def _deepcopied(part: Any, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` gives for a module, without its detours for what nearly every module holds.

    A module of a class that gives itself as its copy is copied all the same, and what cannot be copied (a lock, a file)
    is held by both.
    """
    kind: Any = type(part)
    if id(part) in memo or not _copied_by_its_dict(kind):
        copied = copy.deepcopy(part, memo)
        if copied is not part:
            return copied
    copied = memo[id(part)] = object.__new__(kind)
    state: dict[str, Any] = {}
    for name, held in vars(part).items():
        if name == "_compiled_call_impl":
            continue  # as nn.Module says
        if type(held) in _AS_THEY_ARE or (type(held) is tuple and _AS_THEY_ARE.issuperset(map(type, held))):
            state[name] = held
        elif name == "_modules" and type(held) in (dict, OrderedDict) and id(held) not in memo:
            state[name] = memo[id(held)] = type(held)()
            state[name].update((key, _deepcopied(child, memo)) for key, child in held.items())
        elif type(held) in (dict, OrderedDict) and not held and id(held) not in memo:
            state[name] = memo[id(held)] = type(held)()
        else:
            state[name] = (copy.deepcopy if name in OWN else _copied_if_possible)(held, memo)
    copied.__setstate__(state)
    for name in copyreg._slotnames(kind):  # type: ignore[attr-defined]  # as copy.deepcopy finds them
        if hasattr(part, name):
            object.__setattr__(copied, name, _copied_if_possible(getattr(part, name), memo))
    return copied


def _copied_if_possible(held: Any, memo: dict[int, Any]) -> Any:
    size = len(memo)
    try:
        return copy.deepcopy(held, memo)
    except MemoryError:
        raise
    except Exception:  # whatever an object of the user's raises
        while len(memo) > size:  # what is half a copy
            memo.popitem()
        return held


@cache
def _copied_by_its_dict(kind: Any) -> bool:
    """Whether ``copy.deepcopy`` copies objects of a class by their attributes alone."""
    import torch

    usual = all(
        getattr(kind, way, None) is getattr(torch.nn.Module, way, None)
        for way in ("__new__", "__reduce__", "__reduce_ex__", "__getstate__", "__deepcopy__")
    )
    return usual and issubclass(kind, torch.nn.Module) and kind not in copyreg.dispatch_table
