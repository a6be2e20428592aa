"""Copies of a module that a proof runs: in float64, with its weights moved by their rounding, or put off on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from convbn.bench.models.arguments import alike, array_of
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof.gaps import spoil_of
from convbn.common.dtypes import is_float
from convbn.fuse.frontends.torch.modules.copies import duplicate

if TYPE_CHECKING:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["in_float64", "kept_wide", "moved_by_rounding", "put_off", "spoilt_copy", "wide_feeds"]


def in_float64(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of its own in float64 that nothing trains."""
    wide = duplicate(module, share=False).double()
    for part in wide.modules():
        part.training = False
    return wide


def kept_wide() -> TorchDispatchMode:
    """Casts of float64 and new tensors of a coarser float are float64. (Autocast leaves float64 as it is.)"""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    casts = (torch.ops.aten.to, torch.ops.aten._to_copy)

    def wide(argument: Any) -> Any:
        is_coarser = isinstance(argument, torch.dtype) and argument.is_floating_point
        return torch.float64 if is_coarser else argument

    class KeptWide(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            # An exported cast asks for its type.
            if func.overloadpacket is torch.ops.aten._assert_tensor_metadata:
                return None
            if func.overloadpacket in casts and args[0].dtype == torch.float64:
                args = tuple(map(wide, args))
                kwargs = {name: wide(argument) for name, argument in kwargs.items()}
            made = func(*args, **kwargs)
            read = any(isinstance(a, torch.Tensor) for a in tree_leaves((args, kwargs)))
            new = not read and isinstance(made, torch.Tensor) and made.is_floating_point()
            return made.double() if new else made

    return KeptWide()  # type: ignore[no-untyped-call]


def moved_by_rounding(
    module: torch.nn.Module, layers: set[str], least: float = 0.0
) -> Iterator[torch.nn.Module]:
    """The same with the numbers of some layers moved by their rounding: at random, and all of them upwards.

    By ``least`` where their own type is finer.

    Where weights cancel, few of them may do so at random as well; upwards they do not.
    """
    units = {
        name: [max(_unit(p), least) for p in part.parameters(recurse=False)]
        for name, part in module.named_modules()
        if name in layers
    }
    import torch

    generator = torch.Generator().manual_seed(0)
    for random in (True, False):
        wide = in_float64(module)
        with torch.no_grad():
            for name, part in wide.named_modules():
                for parameter, unit in zip(part.parameters(recurse=False), units.get(name, ()), strict=False):
                    signs = torch.sign(parameter)
                    if random:
                        signs = (
                            torch.randint(0, 2, parameter.shape, generator=generator).to(parameter) * 2 - 1
                        )
                    parameter.mul_(1 + unit * signs)
        yield wide


def spoilt_copy(layer: torch.nn.Module) -> torch.nn.Module:
    """The layer in float64 with its weight off by 1 %, or what its own type can tell."""
    wide = in_float64(layer)
    _spoil(wide, spoil_of(array_of(next(layer.parameters()).flatten()[:1]).dtype))
    return wide


def _spoil(layer: torch.nn.Module, error: float | None = None) -> bool:
    """Put the weights of a layer off; whether it has any."""
    import torch

    own = [p for p in layer.parameters(recurse=False) if p.is_floating_point()]
    weights = [p for p in own if p.ndim > 1] or own[:1]  # a normalisation has a vector
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1 + (error or spoil_of(array_of(weight.flatten()[:1]).dtype)))
    return bool(weights)


@contextmanager
def put_off(layer: torch.nn.Module) -> Iterator[bool]:
    """Put the weights of a layer off while the block runs; gives whether it has any."""
    import torch

    held = [(p, p.detach().clone()) for p in layer.parameters(recurse=False)]
    try:
        yield _spoil(layer)
    finally:
        with torch.no_grad():
            for parameter, before in held:
                parameter.copy_(before)


def _unit(parameter: torch.Tensor) -> float:
    import torch

    return float(torch.finfo(parameter.dtype).eps) if parameter.is_floating_point() else 0.0


def wide_feeds(feeds: Feeds) -> Feeds:
    """The inputs in float64, complex128 where they are complex; integers stay."""
    wide: dict[str, Array] = {}
    for name, array in feeds.items():
        kind = (
            np.complex128 if array.dtype.kind == "c" else np.float64 if is_float(array.dtype) else array.dtype
        )
        wide[name] = array.astype(kind)
    return alike(feeds, wide)
