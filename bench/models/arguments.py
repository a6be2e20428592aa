"""The arguments of a PyTorch model as people have them: tensors in lists, tuples and dicts, and what is no tensor."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convbn.bench.models.inputs import Array, Feeds, input_specs, is_onnx
from convbn.common.dtypes import dtype_name, dtype_of
from convbn.errors import UsageError

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
            model's inputs, or one.

    Raises:
        UsageError: a keyword is for a parameter that takes nothing but keywords, or one is missing.
    """
    if examples is None:
        return None
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
    forward = getattr(model, "forward", None)
    if not isinstance(examples, Mapping) or forward is None:
        return (examples,)
    parameters = inspect.signature(forward).parameters
    if not examples or not all(key in parameters for key in examples):
        return (examples,)
    if any(parameters[key].kind is inspect.Parameter.KEYWORD_ONLY for key in examples):
        raise UsageError("a parameter that takes nothing but keywords cannot be given as an example input")
    last = max(list(parameters).index(key) for key in examples)
    values = []
    for name, parameter in list(parameters.items())[: last + 1]:
        if name not in examples and parameter.default is inspect.Parameter.empty:
            raise UsageError(f"example_inputs gives no '{name}', which the forward needs")
        values.append(examples.get(name, parameter.default))
    return tuple(values)
