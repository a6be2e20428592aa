"""What a fold did to the structure of a module, as JSON, and the same done again to another copy of it.

Both are told by comparing two modules, never by asking the folder: which modules became nothing or only
their activation, which tensors came and went, which plain attributes changed, which tensors are one.
Together with the folded tensors this is the folded module, so it can be loaded without being computed.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from convbn.errors import BadInputError, NotSupportedError
from convbn.fuse.frontends.torch.checkpoint.key_map import same_numbers
from convbn.fuse.frontends.torch.checkpoint.layer_settings import check_settings, settings_of
from convbn.fuse.frontends.torch.checkpoint.schema import AddedTensor, Replaced, Structure
from convbn.fuse.frontends.torch.edit.folded import channels_of, mark_folded, statistics_of_nothing
from convbn.fuse.frontends.torch.modules.copies import checked, duplicate

if TYPE_CHECKING:
    import torch

    from convbn.fuse.frontends.torch.checkpoint.schema import Plain

    _Pair: TypeAlias = tuple[str, torch.nn.Module, torch.nn.Module]

__all__ = ["apply_structure", "finish", "structure_of"]

_OTHER = "name the architecture that was folded, with its arguments"


def structure_of(original: torch.nn.Module, folded: torch.nn.Module) -> dict[str, Any]:
    """How ``folded`` differs from ``original`` in everything but the numbers.

    Args:
        original: what was folded; wrappers that only run a module are looked through.
        folded: what the fold made of it.

    Returns:
        JSON by ``fuse/fused-checkpoint.schema.json``; the same for the same two modules.

    Raises:
        NotSupportedError: the difference is of a kind that cannot be repeated from a description, or the
            fold changed a tensor that no state dict holds.
    """
    modules: list[Replaced] = []
    added: list[AddedTensor] = []
    removed: list[str] = []
    attributes: dict[str, dict[str, Plain]] = {}
    for path, before, after in _pairs(checked(original), folded):
        if type(before) is not type(after):
            modules.append(_replacement(path, before, after))
            continue
        if _hooks(before) != _hooks(after):
            raise _indescribable(path, "other hooks", before)
        prefix = f"{path}." if path else ""
        for name, tensor, kind in _tensors(after):
            old = _tensor(before, name)
            if old is None or old.shape != tensor.shape:
                added.append(AddedTensor.of(prefix + name, tensor, kind))
            elif name in after._non_persistent_buffers_set and not same_numbers(old, tensor):
                raise NotSupportedError(
                    f"'{prefix}{name}' was folded into and is a buffer that no state dict holds",
                    source=type(original).__name__,
                    hint="register it with persistent=True",
                )
        removed.extend(prefix + name for name, _, _ in _tensors(before) if _tensor(after, name) is None)
        changed = _changed_attributes(before, after)
        if changed:
            attributes[path] = changed
    structure = Structure(
        modules=tuple(modules),
        added=tuple(added),
        removed=tuple(removed),
        attributes=attributes,
        shared=tuple(_shared(folded)),
        settings=settings_of(folded),
        training=tuple(path for path, part in folded.named_modules() if part.training),
    )
    return structure.to_dict()


def apply_structure(module: torch.nn.Module, structure: Mapping[str, Any]) -> torch.nn.Module:
    """Give a module the structure of a fold.

    Args:
        module: built as the one that was folded; it is not changed.
        structure: see :func:`structure_of`.

    Returns:
        A copy that shares its tensors with ``module``. Tensors that the fold added are on the meta device
        until a state dict is loaded with ``assign=True``; then :func:`finish` makes those one that
        were.

    Raises:
        BadInputError: the description is malformed, or of another module.
    """
    wanted = Structure.from_dict(structure)
    module = duplicate(module, share=True)
    before = [(entry, _at(module, entry.path)) for entry in wanted.modules]
    made: dict[tuple[int, tuple[str, ...]], torch.nn.Module] = {}
    for entry, part in before:
        _check_batchnorm(entry.path, part)
        made.setdefault((id(part), entry.children), _rest(entry, part))
    for entry, part in before:
        _put(module, entry.path, made[id(part), entry.children])
    _set_attributes(module, wanted.attributes)
    for name in wanted.removed:
        path, _, leaf = name.rpartition(".")
        owner = _at(module, path)
        if _tensor(owner, leaf) is None:
            raise BadInputError(f"the architecture has no tensor '{name}', which the fold took away")
        (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = None
    for tensor in wanted.added:
        _add(module, tensor)
    check_settings(module, wanted.settings)
    return module


def finish(original: torch.nn.Module, module: torch.nn.Module, structure: Mapping[str, Any]) -> None:
    """Make those tensors one that were one in the folded module, set its training flags, and mark it as folded.

    Args:
        original: as given to :func:`apply_structure`.
        module: with the structure applied and its tensors loaded; changed in place.
        structure: see :func:`structure_of`.

    Raises:
        BadInputError: tensors that are said to be one differ, or do not exist.
    """
    wanted = Structure.from_dict(structure)
    module.eval()
    for path in wanted.training:
        _at(module, path).training = True
    for group in wanted.shared:
        first, kind = _owned(module, group[0])
        for name in group[1:]:
            other, other_kind = _owned(module, name)
            if other_kind != kind or not same_numbers(first, other):
                raise BadInputError(
                    f"'{name}' is said to be one tensor with '{group[0]}' and differs from it"
                )
            path, _, leaf = name.rpartition(".")
            getattr(_at(module, path), kind)[leaf] = first
    if wanted.modules:
        mark_folded(module)
        gone = {entry.path: channels_of(_at(original, entry.path)) for entry in wanted.modules}
        statistics_of_nothing(module, gone)


def _pairs(original: torch.nn.Module, folded: torch.nn.Module) -> Iterator[_Pair]:
    """Modules that stand at the same place, every place once, parents first."""
    waiting: list[_Pair] = [("", original, folded)]
    while waiting:
        path, before, after = waiting.pop()
        yield path, before, after
        same = type(before) is type(after)
        children = [(name, child) for name, child in after._modules.items() if child is not None]
        if same and {name for name, _ in children} != {
            n for n, c in before._modules.items() if c is not None
        }:
            raise _indescribable(path, "other children", before)
        for name, child in reversed(children):
            old = before._modules.get(name)
            if old is not None:  # a child of a replaced module; `_replacement` refuses one that is new
                waiting.append((f"{path}.{name}" if path else name, old, child))


def _replacement(path: str, before: torch.nn.Module, after: torch.nn.Module) -> Replaced:
    import torch

    if type(after) is torch.nn.Identity:
        return Replaced(path)
    children = tuple(after._modules)
    known = all(before._modules.get(name) is not None for name in children)
    if path and type(after) is torch.nn.Sequential and children and known:
        return Replaced(path, children)
    raise _indescribable(path, f"a {type(after).__name__}", before)


def _indescribable(path: str, what: str, before: torch.nn.Module) -> NotSupportedError:
    return NotSupportedError(
        f"'{path or 'the model'}' ({type(before).__name__}) was given {what}, which cannot be described",
        hint="write a .pt2 or .onnx file instead",
    )


def _hooks(part: torch.nn.Module) -> tuple[int, int]:
    return len(part._forward_pre_hooks), len(part._forward_hooks)


def _check_batchnorm(path: str, part: torch.nn.Module) -> None:
    """A fold replaces BatchNorms alone: PyTorch's, or modules of other classes that hold vectors of one size."""
    from torch.nn.modules.batchnorm import _BatchNorm

    vectors = [tensor.shape for _, tensor, _ in _tensors(part) if tensor.ndim == 1]
    other = not type(part).__module__.startswith("torch.nn.") and len(vectors) > 1 and len({*vectors}) == 1
    if not (isinstance(part, _BatchNorm) or other):
        raise BadInputError(
            f"'{path}' is a {type(part).__name__} and no BatchNorm, which a fold replaces", hint=_OTHER
        )


def _rest(entry: Replaced, part: torch.nn.Module) -> torch.nn.Module:
    import torch

    children = OrderedDict((name, part._modules.get(name)) for name in entry.children)
    for name, child in children.items():
        if child is None:
            raise BadInputError(f"the architecture has no module '{entry.path}.{name}'")
    rest = torch.nn.Sequential(children) if children else torch.nn.Identity()  # type: ignore[arg-type]  # no None left
    rest.training = part.training
    return rest


def _set_attributes(module: torch.nn.Module, attributes: Mapping[str, Mapping[str, Plain]]) -> None:
    copies: dict[tuple[int, tuple[tuple[str, Plain], ...]], torch.nn.Module] = {}
    for path, values in attributes.items():
        part = _at(module, path)
        for name, value in values.items():
            if name != "inplace" or value is not False or not isinstance(vars(part).get(name), bool):
                raise BadInputError(
                    f"'{path}' has no attribute '{name}' of the kind that a fold changes", hint=_OTHER
                )
        # The same activation may stand in other places, where it keeps what it has.
        key = (id(part), tuple(values.items()))
        changed = copies.setdefault(key, copy.copy(part) if path else part)
        vars(changed).update(values)
        if path:
            _put(module, path, changed)


def _add(module: torch.nn.Module, tensor: AddedTensor) -> None:
    import torch

    path, _, leaf = tensor.name.rpartition(".")
    owner = _at(module, path)
    empty = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="meta")
    if vars(owner).get(leaf, owner) is None:  # as an attribute like any other
        del vars(owner)[leaf]
    if tensor.kind == "parameter":
        owner._parameters[leaf] = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    else:
        owner._buffers[leaf] = empty


def _at(module: torch.nn.Module, path: str) -> torch.nn.Module:
    part = module
    for name in path.split(".") if path else ():
        child = part._modules.get(name)
        if child is None:
            raise BadInputError(f"the architecture has no module '{path}'", hint=_OTHER)
        part = child
    return part


def _put(module: torch.nn.Module, path: str, part: torch.nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    _at(module, parent)._modules[name] = part


def _tensors(part: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, str]]:
    for name, parameter in part._parameters.items():
        if parameter is not None:
            yield name, parameter, "parameter"
    for name, buffer in part._buffers.items():
        if buffer is not None:
            yield name, buffer, "buffer"


def _tensor(part: torch.nn.Module, name: str) -> torch.Tensor | None:
    found = part._parameters.get(name)
    return part._buffers.get(name) if found is None else found


def _owned(module: torch.nn.Module, name: str) -> tuple[torch.Tensor, str]:
    path, _, leaf = name.rpartition(".")
    owner = _at(module, path)
    tensor = _tensor(owner, leaf)
    if tensor is None:
        raise BadInputError(f"the architecture has no tensor '{name}'", hint=_OTHER)
    return tensor, "_parameters" if owner._parameters.get(leaf) is not None else "_buffers"


def _shared(module: torch.nn.Module) -> Iterator[tuple[str, ...]]:
    """Names of one and the same tensor, where different modules, or slots of one, hold it."""
    slots: dict[int, list[str]] = {}
    seen: set[tuple[int, str]] = set()
    for path, part in module.named_modules(remove_duplicate=False):
        for name, tensor, _ in _tensors(part):
            if (id(part._parameters), name) not in seen:  # a module that stands in two places is one slot
                seen.add((id(part._parameters), name))
                slots.setdefault(id(tensor), []).append(f"{path}.{name}" if path else name)
    return (tuple(names) for names in slots.values() if len(names) > 1)


def _changed_attributes(before: torch.nn.Module, after: torch.nn.Module) -> dict[str, Plain]:
    """What a fold changes there: an activation no longer works in place."""
    changed = vars(before).get("inplace") is True and vars(after).get("inplace") is False
    return {"inplace": False} if changed else {}
