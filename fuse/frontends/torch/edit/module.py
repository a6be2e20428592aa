"""A plan's edits on a copy of a module."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convbn.fuse.frontends.torch.calls.tensors import as_tensor, to_tensor
from convbn.fuse.frontends.torch.edit.folded import channels_of, mark_folded, statistics_of_nothing
from convbn.fuse.frontends.torch.materialize.called_layers import make_layers
from convbn.fuse.frontends.torch.materialize.weights import materialize
from convbn.fuse.frontends.torch.modules.copies import duplicate
from convbn.fuse.view.dataflow import Constant
from convbn.fuse.view.edits import Edit, SetConstant

if TYPE_CHECKING:
    import torch

__all__ = ["EditSite", "adopt", "edit_module"]


@dataclass(frozen=True, slots=True)
class EditSite:
    """Where in a module the edits of a node are made.

    Attributes:
        parameters: by slot, the qualified name of the tensor there, or of the one to add.
        path: the module that a BatchNorm is; None where it is none.
        kept: names of the module's children that stay when the BatchNorm goes, in calling order.
        out_of_place: paths of modules that must no longer work in place then.
    """

    parameters: Mapping[int, str] = field(default_factory=dict)
    path: str | None = None
    kept: tuple[str, ...] = ()
    out_of_place: tuple[str, ...] = ()


def edit_module(module: torch.nn.Module, edits: Sequence[Edit]) -> torch.nn.Module:
    """A copy of ``module``, of the same class, with the edits made.

    Of several constants for one slot only the last is made: each is computed from the tensors that the module
    came with. None is made for what is bypassed later.
    """
    import torch

    gone = {id(e.node) for e in edits if not isinstance(e, SetConstant)}
    last = {(id(e.node), e.slot): e for e in edits if isinstance(e, SetConstant) and id(e.node) not in gone}
    written = [_tensor(module, e.node.handle.parameters[e.slot]) for e in last.values()]
    blank = [tensor for tensor in written if tensor is not None]
    with torch.inference_mode(False):  # what is made in that mode could not be trained
        edited = duplicate(module, share=False, blank=blank)
        for edit in last.values():
            _set(edited, edit.node.handle, edit.slot, edit.constant)
    instead: dict[int, torch.nn.Module] = {}
    sizes: dict[str, int] = {}
    for other in edits:
        site: EditSite = other.node.handle
        if not isinstance(other, SetConstant) and site.path is not None:
            for path in site.out_of_place:
                setattr(edited.get_submodule(path), "inplace", False)  # noqa: B010 - unknown to nn.Module
            part = edited.get_submodule(site.path)
            instead[id(part)] = _replacement(part, site.kept)
            sizes[site.path] = channels_of(part)
    for parent in list(edited.modules()) if instead else ():
        for name, child in parent._modules.items():
            if id(child) in instead:
                parent._modules[name] = instead[id(child)]
    if instead:
        mark_folded(edited)
        statistics_of_nothing(edited, sizes)
    return edited


def adopt(module: torch.nn.Module, folded: torch.nn.Module, *, materialized: bool = False) -> None:
    """Let a module become what a fold of it is: its tensors take the numbers, what is new is put in its place.

    Args:
        module: is changed; its own tensors stay, so whoever holds one sees the new numbers.
        folded: an edited copy of ``module``.
        materialized: whether computed weights were made parameters of that copy first.
    """
    import torch

    if materialized:
        materialize(module)
    make_layers(module)

    before, after = (dict(m.named_modules(remove_duplicate=False)) for m in (module, folded))
    gone = {
        path for path, part in after.items() if path not in before or type(part) is not type(before[path])
    }
    for path, part in after.items():
        parent, _, name = path.rpartition(".")
        if path in gone and parent in before and parent not in gone:
            before[parent]._modules[name] = part
        if path in gone or path not in before or any(path.startswith(f"{other}.") for other in gone):
            continue
        own = before[path]
        for held, new in ((own._parameters, part._parameters), (own._buffers, part._buffers)):
            for key, tensor in new.items():
                current = held.get(key)
                if current is None:
                    held[key] = tensor
                elif tensor is not None:
                    with torch.inference_mode(current.is_inference()), torch.no_grad():
                        current.copy_(tensor)
        if getattr(own, "inplace", None) is True and getattr(part, "inplace", None) is False:
            setattr(own, "inplace", False)  # noqa: B010 - unknown to nn.Module
    if gone:
        mark_folded(module)


def _tensor(module: torch.nn.Module, path: str) -> torch.Tensor | None:
    owner, _, name = path.rpartition(".")
    found: torch.Tensor | None = getattr(module.get_submodule(owner), name)
    return found


def _set(module: torch.nn.Module, site: EditSite, slot: int, constant: Constant) -> None:
    """Write into the tensor at a slot, or add the parameter where there is none."""
    import torch

    path, _, name = site.parameters[slot].rpartition(".")
    owner = module.get_submodule(path)
    current = getattr(owner, name)
    if current is not None:
        # In place: device, memory format, requires_grad and every other name of the tensor stay.
        plain = current.detach()
        if plain.is_cpu and plain.is_contiguous() and plain.dtype != torch.bfloat16:
            target = plain.numpy().reshape(constant.shape)
            if target.dtype == constant.dtype:
                constant.write(target)
                return
        with torch.no_grad():
            current.copy_(as_tensor(constant.array().reshape(current.shape)))
        return
    values = constant.array()
    sibling = owner._parameters.get("weight")
    if sibling is None and "running_mean" not in owner._buffers:  # a registered class has names of its own
        sibling = next((held for held in owner._parameters.values() if held is not None), None)
    like = owner._buffers.get("running_mean") if sibling is None else sibling
    if like is None:
        raise ValueError(f"'{path}' has no tensor that says where a new one belongs")
    trains = like.requires_grad if sibling is not None else True
    vars(owner).pop(name, None)  # None, as an attribute like any other
    owner._parameters[name] = torch.nn.Parameter(to_tensor(values, like), requires_grad=trains)


def _replacement(part: torch.nn.Module, kept: tuple[str, ...]) -> torch.nn.Module:
    """What remains of a BatchNorm: nothing, or the children that it called."""
    import torch

    children = OrderedDict((name, _not_in_place(getattr(part, name))) for name in kept)
    idle = all(type(child) is torch.nn.Identity for child in children.values())
    new = torch.nn.Identity() if idle else torch.nn.Sequential(children)
    new.training = part.training
    return new


def _not_in_place(child: torch.nn.Module) -> torch.nn.Module:
    """The activation without its in-place form: what it would overwrite now is no longer its own.

    The BatchNorm gave it a fresh tensor; the layer before may give one that others read.
    """
    if not getattr(child, "inplace", False):
        return child
    child = copy.copy(child)
    setattr(child, "inplace", False)  # noqa: B010 - an attribute of the subclass, unknown to nn.Module
    return child
