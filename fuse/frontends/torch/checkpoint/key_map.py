"""What became of each key of a state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convbn.fuse.frontends.torch.modules.copies import unwrapped
from convbn.fuse.plan.plan import Folded
from convbn.fuse.report import Key

__all__ = ["StateBefore", "same_numbers"]


class StateBefore:
    """The state dict of a model that is about to be folded, perhaps in place.

    Args:
        model: a module, looked for inside wrappers that only run it, or an exported program.
    """

    def __init__(self, model: Any) -> None:
        self._state = _state_of(model)
        # A fold in place writes to these very tensors; torch counts that.
        self._versions = {name: _version(tensor) for name, tensor in self._state.items()}

    def keys(self, result: Any, folded: Sequence[Folded]) -> tuple[Key, ...]:
        """Every key with its fate: those there were, in their order, then those that came.

        Args:
            result: what the fold gave.
            folded: the BatchNorms that went; their keys are gone into what took them in.
        """
        after = _state_of(result)
        into = {entry.name: entry.into for entry in folded}
        keys = [self._key(name, after, into) for name in self._state]
        keys.extend(Key(None, name, "new") for name in after if name not in self._state)
        return tuple(keys)

    def _key(self, name: str, after: Mapping[str, object], into: Mapping[str, tuple[str, ...]]) -> Key:
        if name not in after:
            return Key(name, None, "gone", _takers(name, into))
        tensor = self._state[name]
        same = _version(tensor) == self._versions[name] and same_numbers(tensor, after[name])
        return Key(name, name, "same" if same else "changed")


def same_numbers(one: object, other: object) -> bool:
    """Whether two tensors are equal in shape, dtype and numbers, NaN being equal to the same NaN."""
    import torch

    if one is other or not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return one is other
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    if not alike or one.is_meta or one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    return torch.equal(one, other) or torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _state_of(model: Any) -> Mapping[str, Any]:
    import torch

    inner: Any = unwrapped(model)
    if not isinstance(inner, torch.nn.Module):
        return inner.state_dict  # type: ignore[no-any-return]
    try:
        return inner.state_dict()
    except Exception:  # whatever a class of somebody's own raises that has no state to give
        return dict((*inner.named_parameters(), *inner.named_buffers()))


def _version(tensor: Any) -> int:
    """How often a tensor was written to; one that was made in inference mode does not count that."""
    return 0 if not hasattr(tensor, "is_inference") or tensor.is_inference() else tensor._version


def _takers(name: str, into: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What took in the innermost folded module that a key belongs to."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        if path in into:
            return into[path]
    return ()
