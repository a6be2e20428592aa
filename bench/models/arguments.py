"""The arguments of a PyTorch model as people have them: tensors in lists, tuples and dicts, and what is no tensor."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convbn.bench.models.inputs import Array, Feeds, input_specs, is_onnx
from convbn.common.dtypes import dtype_name, dtype_of
from convbn.errors import UsageError
from convbn.fuse.frontends.torch.modules.copies import unwrapped
from convbn.fuse.frontends.torch.modules.keywords import Keywords

__all__ = ["Arguments", "alike", "array_of", "positional"]


class Arguments(dict[str, Array]):
    """Arrays by name that stand for the tensors in a nest of positional arguments.

    Args:
        arrays: of the tensors, in the order in which they stand in the nest.
        leaves: of the nest: the name of an array, or something that is no tensor, as it is.
        structure: PyTorch's description of the nest.
    """

    def __init__(
        self, arrays: Mapping[str, Array], leaves: Sequence[tuple[bool, Any]], structure: Any
    ) -> None:
        super().__init__(arrays)
        self._leaves, self._structure = leaves, structure

    @classmethod
    def of(cls, examples: Sequence[Any], names: Iterable[str] | None = None) -> Arguments:
        """The arguments as arrays.

        Args:
            examples: positional.
            names: of the tensors; ``input_0``, ``input_1``, … without.
        """
        from torch.utils import _pytree as pytree

        flat, structure = pytree.tree_flatten(tuple(examples))
        listed = None if names is None else list(names)
        arrays: dict[str, Array] = {}
        leaves: list[tuple[bool, Any]] = []
        for leaf in flat:
            if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
                leaves.append((False, leaf))
                continue
            name = f"input_{len(arrays)}" if listed is None else listed[len(arrays)]
            arrays[name] = array_of(leaf)
            leaves.append((True, name))
        return cls(arrays, leaves, structure)

    def like(self, arrays: Mapping[str, Array]) -> Arguments:
        """The same nest around other arrays."""
        return Arguments(arrays, self._leaves, self._structure)

    def named(self, names: Iterable[str]) -> Arguments:
        """The same under other names, in the same order."""
        other = dict(zip(self, names, strict=True))
        leaves = [(named, other[value] if named else value) for named, value in self._leaves]
        return Arguments({other[name]: array for name, array in self.items()}, leaves, self._structure)

    def filled(self, tensors: Mapping[str, Any]) -> tuple[Any, ...]:
        """The nest with tensors in the place of the arrays."""
        from torch.utils import _pytree as pytree

        flat = [tensors[value] if named else value for named, value in self._leaves]
        return tuple(pytree.tree_unflatten(flat, self._structure))


def alike(feeds: Feeds, arrays: dict[str, Array]) -> Feeds:
    """Other arrays for the same inputs, with the nest that they stand in if there is one."""
    return feeds.like(arrays) if isinstance(feeds, Arguments) else arrays


def array_of(tensor: Any) -> Array:
    """A torch tensor or an array as an array of its own."""
    if isinstance(tensor, np.ndarray):
        return tensor.copy()
    if not hasattr(tensor, "detach"):
        return np.array(tensor)
    import torch

    plain = tensor.detach().cpu().contiguous().clone()
    dtype = dtype_of(dtype_name(plain))
    if dtype.isbuiltin == 1:
        array: Array = plain.numpy()
        return array
    carrier = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    carried: Array = plain.view(carrier).numpy().view(dtype)
    return carried


def positional(model: Any, examples: Any) -> tuple[Any, ...] | None:
    """Example inputs as positional arguments: several, the only one, keywords, or none.

    Args:
        model: whose forward takes them.
        examples: a tuple or list of them, a dict whose keys are names of the forward's parameters or of an ONNX
            model's inputs, or one. What a forward takes by name alone comes last, as
            :class:`convbn.fuse.frontends.torch.modules.keywords.Keywords`.

    Raises:
        UsageError: one that the forward needs is missing.
    """
    if examples is None:
        return None
    if hasattr(model, "forward") or hasattr(model, "graph_signature"):
        examples = _tensors(examples)
    if isinstance(examples, list | tuple):
        return tuple(examples)
    if isinstance(examples, Mapping) and is_onnx(model):
        names = [spec.name for spec in input_specs(model)]
        missing = [name for name in names if name not in examples]
        if missing:
            raise UsageError(
                f"example_inputs gives no {missing[0]!r}", hint=f"the inputs are {', '.join(names)}"
            )
        return tuple(examples[name] for name in names)
    forward = getattr(unwrapped(model), "forward", None)
    if not isinstance(examples, Mapping) or forward is None:
        return (examples,)
    return _by_signature(inspect.signature(forward).parameters, examples)


def _by_signature(
    parameters: Mapping[str, inspect.Parameter], examples: Mapping[Any, Any]
) -> tuple[Any, ...]:
    """Examples by name in the order of a forward's parameters; the dict itself, if its keys are no names of them."""
    place = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY
    ordered = [name for name, one in parameters.items() if one.kind in place]
    named = [name for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    known = [key for key in examples if key in ordered or key in named]
    if not known or (len(known) < len(examples) and not takes_any):
        return (examples,)
    last = max((ordered.index(key) for key in known if key in ordered), default=-1)
    needed = [
        name for name in ordered[: last + 1] + named if parameters[name].default is inspect.Parameter.empty
    ]
    missing = [name for name in needed if name not in examples]
    if missing:
        raise UsageError(f"example_inputs gives no '{missing[0]}', which the forward needs")
    places = tuple(examples.get(name, parameters[name].default) for name in ordered[: last + 1])
    keywords = {key: value for key, value in examples.items() if key not in ordered}
    return (*places, Keywords(keywords)) if keywords else places


def _tensors(examples: Any) -> Any:
    """A nest with PyTorch tensors in the place of NumPy arrays."""
    from torch.utils import _pytree as pytree

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        import torch

        return torch.from_numpy(leaf.copy())

    return pytree.tree_map(tensor, examples)
