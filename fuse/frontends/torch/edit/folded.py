"""What a folded module says of itself: that it was folded, and that nothing is left for a ``fuse()`` of its own.

Detectors and re-parameterisable networks bring a ``fuse()``, which computes with the tensors of the BatchNorm that
stands beside a convolution. Where the code of a class reads them, the Identity in the BatchNorm's place holds those
of one that does nothing: ``γ = 1``, ``σ² = 1``, ``ε = 0``, ``μ = 0``, ``β = 0``. Code that takes the convolution to
have no bias would lose the one that the fold gave it; for that code ``β`` is that bias.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from types import CodeType
from typing import TYPE_CHECKING, Any

from convbn.common import __version__
from convbn.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["channels_of", "is_folded", "mark_folded", "statistics_of_nothing"]

_MARK = "_folded_by"
_STATISTICS = frozenset({"running_mean", "running_var"})


def is_folded(module: torch.nn.Module) -> bool:
    """Whether convbn folded a module, or a part of it, or loaded it as folded.

    Copies, pickles and wrappers of a folded module are folded, too; one in which no BatchNorm went is not.

    Raises:
        UsageError: it is no module.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"a {type(module).__name__} is no module", hint="give a torch.nn.Module")
    return any(_MARK in vars(part) for part in module.modules())


def mark_folded(module: torch.nn.Module) -> None:
    """Let :func:`is_folded` know."""
    vars(module)[_MARK] = f"convbn {__version__}"


def channels_of(part: torch.nn.Module) -> int:
    """The number of channels of a BatchNorm: the size of its vectors; 0 where it has none."""
    vectors = (*part._parameters.values(), *part._buffers.values())
    return next((tensor.numel() for tensor in vectors if tensor is not None and tensor.ndim == 1), 0)


def statistics_of_nothing(module: torch.nn.Module, sizes: Mapping[str, int]) -> None:
    """Give Identities the tensors of a BatchNorm that does nothing, where the module's code reads such tensors.

    Args:
        module: folded; is changed. The tensors are buffers that no state dict holds.
        sizes: number of channels of the BatchNorm that was there, by path.
    """
    import torch

    for path, size in sizes.items():
        owner_path, _, name = path.rpartition(".")
        identity = module.get_submodule(path)
        kinds: list[Any] = [type(part) for part in _around(module, owner_path)]
        needed = size and any(_reads(kind, name) for kind in kinds)
        if not needed or type(identity) is not torch.nn.Identity:
            continue
        owner = module.get_submodule(owner_path)
        bias = _bias_before(owner, name, size)
        like = next((p for p in (*owner.parameters(), *module.parameters()) if p.is_floating_point()), None)
        ones = torch.ones(size) if like is None else torch.ones(size, dtype=like.dtype, device=like.device)
        reader = next((kind for kind in kinds if _names(kind) & _STATISTICS), None)
        blind = bias is not None and reader is not None and _takes_no_bias(reader)
        shift = bias.detach().clone() if blind and bias is not None else torch.zeros_like(ones)
        tensors = {"weight": ones, "bias": shift, "running_mean": torch.zeros_like(ones)}
        for key, tensor in {**tensors, "running_var": ones.clone()}.items():
            identity.register_buffer(key, tensor, persistent=False)
        vars(identity).update(eps=0.0, num_features=size)


def _around(module: torch.nn.Module, path: str) -> Iterator[torch.nn.Module]:
    """The modules that a path lies in, the nearest first."""
    while path:
        yield module.get_submodule(path)
        path = path.rpartition(".")[0]
    yield module


def _bias_before(owner: torch.nn.Module, name: str, size: int) -> torch.Tensor | None:
    """The bias of the layer that stands before a child, if it is one of so many channels."""
    names = list(owner._modules)
    before = owner._modules[names[names.index(name) - 1]] if names.index(name) else None
    bias = None if before is None else before._parameters.get("bias")
    return bias if bias is not None and bias.shape == (size,) else None


@cache
def _reads(kind: type, child: str) -> bool:
    """Whether a class's code, other than its forward, has to do with a child or with a BatchNorm's statistics."""
    names = _names(kind)
    fuses = any("fuse" in name and ("bn" in name or "norm" in name) for name in names)
    return child in names or fuses or bool(names & _STATISTICS)


@cache
def _names(kind: type) -> frozenset[str]:
    """The names and words in the code of a class that is not PyTorch's own."""
    waiting = [method.__code__ for method in _methods(kind)]
    found: set[str] = set()
    while waiting:
        code = waiting.pop()
        found.update(code.co_names)
        found.update(constant for constant in code.co_consts if isinstance(constant, str))
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(found)


def _methods(kind: type) -> Iterator[Any]:
    members: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base is not object and base.__module__.partition(".")[0] != "torch":
            members.update(vars(base))
    for name, member in members.items():
        method = inspect.unwrap(getattr(member, "__func__", member)) if callable(member) else member
        if hasattr(method, "__code__") and name != "__init__" and "forward" not in name:
            yield method


@cache
def _takes_no_bias(kind: type) -> bool:
    """Whether the code that reads a BatchNorm's statistics reads no other bias than the BatchNorm's."""
    norms: set[str] = set()
    biases: set[str] = set()
    for method in _methods(kind):
        if not {*method.__code__.co_names} & _STATISTICS:
            continue
        try:
            nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(method)))))
        except (OSError, TypeError, SyntaxError):  # a class that was made without a file
            return False
        read = [node for node in nodes if isinstance(node, ast.Attribute)]
        norms |= {ast.unparse(node.value) for node in read if node.attr in _STATISTICS}
        biases |= {ast.unparse(node.value) for node in read if node.attr == "bias"}
        biases |= {"" for node in nodes if isinstance(node, ast.Constant) and node.value == "bias"}
    return bool(norms) and biases <= norms
