"""BatchNorms that are no ``torch.nn`` BatchNorms: which classes they are, and where they keep what.

A registered class is trusted to compute ``γ·(x − μ)/√(σ² + ε) + β`` along axis 1, and to hand that through the
children named in ``then``. On the copy that is captured its forward is replaced by just that, so it need not be
traceable; with example inputs the proof at the end runs the user's own forward.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

from convbn.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["BatchNormLayout", "layout_of", "read_as_batchnorm", "register_batchnorm"]


@dataclass(frozen=True, slots=True)
class BatchNormLayout:
    """The attributes of a BatchNorm-like module.

    Attributes:
        weight, bias: γ and β; None where the class has none.
        running_mean, running_var: μ and σ².
        eps: ε, or the attribute that holds it.
        then: children that the result is handed through, in order.
    """

    weight: str | None = "weight"
    bias: str | None = "bias"
    running_mean: str = "running_mean"
    running_var: str = "running_var"
    eps: str | float = "eps"
    then: tuple[str, ...] = ()


_KNOWN: dict[tuple[str, str], BatchNormLayout] = {
    ("torchvision.ops.misc", "FrozenBatchNorm2d"): BatchNormLayout(),
    ("timm.layers.norm_act", "FrozenBatchNormAct2d"): BatchNormLayout(then=("drop", "act")),
}
"""By module and name, so that neither library is imported for it."""

_REGISTERED: dict[type, BatchNormLayout] = {}


def register_batchnorm(
    kind: type,
    *,
    weight: str | None = "weight",
    bias: str | None = "bias",
    running_mean: str = "running_mean",
    running_var: str = "running_var",
    eps: str | float = "eps",
    then: tuple[str, ...] = (),
) -> None:
    """Let modules of a class be folded as what they are: ``γ·(x − μ)/√(σ² + ε) + β`` along axis 1.

    Subclasses that do not replace the forward count as well.

    Args:
        kind: the class.
        weight: the attribute that holds γ, ``[C]``; None for 1.
        bias: the attribute that holds β, ``[C]``; None for 0.
        running_mean: the attribute that holds μ, ``[C]``.
        running_var: the attribute that holds σ², ``[C]``.
        eps: ε, or the attribute that holds it.
        then: names of child modules that the forward hands the result through, one after the other; they stay.

    Raises:
        UsageError: ``kind`` is no module class, or BatchNorm itself.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    if not inspect.isclass(kind) or not issubclass(kind, torch.nn.Module):
        raise UsageError(f"{kind!r} is no class of modules", hint="give the class, not an object of it")
    if issubclass(kind, _BatchNorm) and kind.forward is _BatchNorm.forward:
        raise UsageError(f"{kind.__name__} is known as it is", hint="nothing has to be registered")
    _REGISTERED[kind] = BatchNormLayout(weight, bias, running_mean, running_var, eps, tuple(then))


def layout_of(part: torch.nn.Module) -> BatchNormLayout | None:
    """Where a module keeps its numbers, if its class was registered and its forward is the class's own."""
    import torch

    if (
        "forward" in vars(part) or type(part) is torch.nn.Identity
    ):  # one may stand in for a BatchNorm that went
        return None
    for parent in type(part).__mro__:
        found = _REGISTERED.get(parent) or _KNOWN.get((parent.__module__, parent.__name__))
        if found is not None:
            return found if type(part).forward is parent.forward else None  # type: ignore[attr-defined]
    return _recognised(part)


_TENSORS = ("weight", "bias", "running_mean", "running_var")


def _recognised(part: torch.nn.Module) -> BatchNormLayout | None:
    """The layout of a frozen BatchNorm of any class, told by the names of its tensors and by what it computes.

    Its own forward is run on a copy with random tensors in float64. With σ² = 0 and μ = 0 the result is
    ``x·γ/√ε + β``, which says what ε is; then two random draws must give ``γ·(x − μ)/√(σ² + ε) + β``.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    own = {**part._parameters, **part._buffers}
    sizes = {getattr(own.get(name), "shape", None) for name in _TENSORS}
    shape = sizes.pop()
    if isinstance(part, _BatchNorm) or sizes or shape is None or len(shape) != 1 or part._modules:
        return None
    draws = torch.Generator("cpu").manual_seed(0)

    def drawn(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, dtype=torch.float64, device="cpu", generator=draws)

    x = drawn(2, shape[0], 2, 3)

    def given(gamma: torch.Tensor, beta: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Any:
        for name, tensor in zip(_TENSORS, (gamma, beta, mean, variance), strict=True):
            held: dict[str, Any] = probe._parameters if name in probe._parameters else probe._buffers
            held[name] = tensor
        return type(probe).forward(probe, x)

    zeros, ones = x.new_zeros(shape), x.new_ones(shape)
    try:
        probe = copy.deepcopy(part).cpu().double()
        with torch.no_grad():
            largest = float((x / given(ones, zeros, zeros, zeros)).abs().max())
            eps = float(f"{largest**2:.12g}")
            for _ in range(2):
                gamma, beta, mean, variance = drawn(4, *shape)
                variance = variance.square()
                wanted = torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, eps)
                if not torch.allclose(given(gamma, beta, mean, variance), wanted, rtol=1e-9, atol=1e-9):
                    return None
    except Exception:  # whatever a forward raises that is for something else
        return None
    return BatchNormLayout(eps=eps)


def read_as_batchnorm(module: torch.nn.Module) -> None:
    """Let the registered parts of a copy compute what they are registered for.

    Raises:
        UsageError: a part lacks an attribute that its class was registered with.
    """
    for path, part in module.named_modules():
        layout = layout_of(part)
        if layout is None:
            continue
        wanted = [layout.weight, layout.bias, layout.running_mean, layout.running_var, *layout.then]
        wanted.append(layout.eps if isinstance(layout.eps, str) else None)
        for name in wanted:
            if name is not None and not hasattr(part, name):
                raise UsageError(
                    f"'{path}' ({type(part).__name__}) has no attribute '{name}'",
                    hint="register the class with the names that it has",
                )
        object.__setattr__(part, "forward", MethodType(_forward(layout), part))


def _forward(layout: BatchNormLayout) -> Any:
    def forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import batch_norm

        weight, bias = (
            None if name is None else getattr(self, name) for name in (layout.weight, layout.bias)
        )
        eps = float(getattr(self, layout.eps)) if isinstance(layout.eps, str) else layout.eps
        mean, variance = getattr(self, layout.running_mean), getattr(self, layout.running_var)
        x = batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        for name in layout.then:
            x = getattr(self, name)(x)
        return x

    return forward
