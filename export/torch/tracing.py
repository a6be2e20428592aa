"""What tracing a module needs around it: arguments, eval mode, silence, and an error worth reading."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from convbn.errors import ConvBNError, NotSupportedError, UsageError

if TYPE_CHECKING:
    import torch

    Examples: TypeAlias = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]

__all__ = ["arguments_of", "as_eval", "dynamic_batch_of", "first_line", "quiet", "untraceable"]


def arguments_of(examples: Examples) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Positional and keyword arguments of one tensor, several, or several by name."""
    import torch

    if isinstance(examples, torch.Tensor):
        return (examples,), {}
    if isinstance(examples, Mapping):
        return (), dict(examples)
    return tuple(examples), {}


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
def as_eval(module: object) -> Iterator[None]:
    """Eval mode for the time of an export; each submodule gets its own flag back."""
    import torch

    if not isinstance(module, torch.nn.Module):
        yield
        return
    flags = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in flags:
            child.training = training


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing printed, warned of or logged."""
    # The exporter prints its progress, warns of its own deprecated calls, and logs and prints whole graphs
    # of a failure; what the user needs of that is in the error.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def untraceable(error: Exception, target: str) -> ConvBNError:
    """The root of a failed export in one line; errors that are ours pass."""
    if isinstance(error, ConvBNError):
        return error
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    cause = f"torch cannot export this module to {target}: {type(root).__name__}: {first_line(root)}"
    return NotSupportedError(cause, hint="make its forward traceable by torch.export")


def first_line(error: BaseException) -> str:
    """The first line of a message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
