"""A plan's edits on a copy of a module."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from convbn.fuse.frontends.torch.copies import duplicate
from convbn.fuse.frontends.torch.locks import Site
from convbn.fuse.frontends.torch.tensors import to_tensor
from convbn.fuse.view.edits import Edit, SetConstant

if TYPE_CHECKING:
    import torch

__all__ = ["edit_module"]


def edit_module(module: torch.nn.Module, edits: Sequence[Edit]) -> torch.nn.Module:
    """A copy of ``module``, of the same class, with the edits made."""
    copied = duplicate(module, share=False)
    for edit in edits:
        site: Site = edit.node.handle
        if isinstance(edit, SetConstant):
            _set(copied, site, edit.slot, edit.values)
        elif site.path is not None:
            _replace(copied, copied.get_submodule(site.path), site.remainder)
    return copied


def _set(module: torch.nn.Module, site: Site, slot: int, values: NDArray[Any]) -> None:
    """Write into the tensor at a slot, or add the parameter where there is none."""
    import torch

    path, _, name = site.parameters[slot].rpartition(".")
    owner = module.get_submodule(path)
    current = getattr(owner, name)
    if current is not None:
        # In place: device, memory format, requires_grad and every other name of the tensor stay.
        with torch.no_grad():
            current.copy_(to_tensor(values, current))
        return
    sibling = owner._parameters.get("weight")
    like = owner._buffers["running_mean"] if sibling is None else sibling
    if like is None:
        raise ValueError(f"'{path}' has no tensor that says where a new one belongs")
    trains = like.requires_grad if sibling is not None else True
    owner._parameters[name] = torch.nn.Parameter(to_tensor(values, like), requires_grad=trains)


def _replace(module: torch.nn.Module, part: torch.nn.Module, remainder: tuple[str, ...]) -> None:
    """Put what remains of ``part`` in every place where it stands."""
    import torch

    children = OrderedDict((name, _not_in_place(getattr(part, name))) for name in remainder)
    idle = all(type(child) is torch.nn.Identity for child in children.values())
    rest = torch.nn.Identity() if idle else torch.nn.Sequential(children)
    rest.training = part.training
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is part:
                parent._modules[name] = rest


def _not_in_place(child: torch.nn.Module) -> torch.nn.Module:
    """The activation without its in-place form: what it would overwrite now is no longer its own.

    The BatchNorm gave it a fresh tensor; the layer before may give one that others read.
    """
    if not getattr(child, "inplace", False):
        return child
    child = copy.copy(child)
    setattr(child, "inplace", False)  # noqa: B010 - an attribute of the subclass, unknown to nn.Module
    return child
