"""What tracing a module needs around it: arguments, eval mode, and an error worth reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from convbn.common.text import root_cause
from convbn.errors import ConvBNError, NotSupportedError, UsageError
from convbn.fuse.frontends.torch.modules.isolation import isolated
from convbn.fuse.frontends.torch.modules.keywords import split

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    Examples: TypeAlias = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]

__all__ = ["arguments_of", "as_eval", "dynamic_batch_of", "untraceable"]


def arguments_of(examples: Examples) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Positional and keyword arguments of one tensor, several, or several by name."""
    import torch

    if isinstance(examples, torch.Tensor):
        return (examples,), {}
    if isinstance(examples, Mapping):
        return (), dict(examples)
    places, keywords = split(tuple(examples))
    return (*places, {}) if places and isinstance(places[-1], dict) else places, keywords


def dynamic_batch_of(
    args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor], Any]:
    """Inputs and dynamic shapes with a free dimension 0.

    A batch of 1 is doubled: torch.export takes a dimension of 0 or 1 for a constant.
    """
    import torch

    tensors = [*args, *kwargs.values()]
    batches = {tensor.shape[0] if tensor.ndim else None for tensor in tensors}
    if len(batches) != 1 or None in batches or 0 in batches:
        raise UsageError("a dynamic batch needs inputs whose first dimensions are equal and not 0")
    if batches == {1}:
        args = tuple(torch.cat([tensor, tensor]) for tensor in args)
        kwargs = {name: torch.cat([tensor, tensor]) for name, tensor in kwargs.items()}
    batch = torch.export.Dim("batch")
    if kwargs:
        return args, kwargs, {name: {0: batch} for name in kwargs}
    return args, kwargs, tuple({0: batch} for _ in args)


@contextlib.contextmanager
def as_eval(model: torch.nn.Module | ExportedProgram) -> Iterator[Any]:
    """A copy of a module in eval mode; a program is what it is.

    The copy has the module's parameters. Of a module that cannot be copied each part gets its own flag back.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        yield model
        return
    module = isolated(model)
    flags = [(child, child.training) for child in module.modules()]
    with contextlib.suppress(NotImplementedError):  # what torch.export gave keeps the mode of its export
        module.eval()
    try:
        yield module
    finally:
        for child, training in flags:
            child.training = training


def untraceable(error: Exception, target: str) -> ConvBNError:
    """The root of a failed export in one line; errors that are ours pass."""
    if isinstance(error, ConvBNError):
        return error
    cause = f"torch cannot export this module to {target}: {root_cause(error)}"
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, ModuleNotFoundError) and root.name:
        return NotSupportedError(cause, hint=f"pip install {root.name.partition('.')[0]}")
    return NotSupportedError(cause, hint="make its forward traceable by torch.export")
