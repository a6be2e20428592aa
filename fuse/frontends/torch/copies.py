"""Copies of a module: one that shares its tensors, to look at, and one of its own, to edit."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from convbn.errors import BadInputError

if TYPE_CHECKING:
    import torch

__all__ = ["checked", "duplicate", "first_line"]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a sentence."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def checked(module: object) -> torch.nn.Module:
    """The module itself, out of the wrappers that only run it.

    Raises:
        BadInputError: no module, one whose code cannot be edited, or one without numbers.
    """
    import torch
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    inner = module
    while True:
        if isinstance(inner, DataParallel | DistributedDataParallel):
            inner = inner.module
        elif isinstance(inner, torch.nn.Module) and type(inner).__name__ == "OptimizedModule":
            inner = inner._modules["_orig_mod"]  # torch.compile's class, too slow to import for a question
        else:
            break
    if isinstance(inner, torch.jit.ScriptModule):
        raise BadInputError(
            "a ScriptModule's code cannot be edited",
            source=type(inner).__name__,
            hint="fold the module it was scripted or traced from",
        )
    if not isinstance(inner, torch.nn.Module):
        raise BadInputError(f"{type(inner).__name__} is not a torch.nn.Module")
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


def duplicate(module: torch.nn.Module, *, share: bool) -> torch.nn.Module:
    """A copy of a module.

    Args:
        module: what to copy; it is not touched.
        share: let the copy hold the very parameters and buffers of the original.

    Raises:
        BadInputError: the module cannot be copied.
    """
    import torch

    memo: dict[int, object] = {}
    for part in module.modules():
        for attribute in vars(part).values():
            if isinstance(attribute, torch.Tensor) and attribute.grad_fn is not None:
                # What a hook computes from parameters has a history, which deepcopy refuses to copy.
                memo[id(attribute)] = attribute.detach().clone()
    if share:
        memo.update({id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever an attribute of the user's class raises
        raise BadInputError(
            f"the module cannot be copied ({first_line(error)})",
            source=type(module).__name__,
            hint="remove the attribute that copy.deepcopy cannot copy",
        ) from error
