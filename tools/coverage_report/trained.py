"""Networks as if trained: without that, a wrong fold could hide behind values that are all 0 or 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from coverage_report.architectures import Architecture

__all__ = ["as_trained", "batchnorms", "first_line", "flip_signs", "trained_network"]


def trained_network(
    architecture: Architecture, seed: int, inputs: int
) -> tuple[nn.Module, list[torch.Tensor]]:
    """The network :func:`as_trained`, and so many inputs for it."""
    import torch

    torch.manual_seed(seed)
    values = [
        torch.randn(architecture.shape, generator=torch.Generator().manual_seed(seed + k))
        for k in range(inputs)
    ]
    return as_trained(architecture.build(), values[0], seed), values


def first_line(error: Exception) -> str:
    """What a row says of an error."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:300]}" if said else type(error).__name__


def batchnorms(module: nn.Module) -> list[tuple[str, Any]]:
    """Every BatchNorm of a module with its name."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [(name, part) for name, part in module.named_modules() if isinstance(part, _BatchNorm)]


def as_trained(module: nn.Module, x: torch.Tensor, seed: int) -> nn.Module:
    """BatchNorms as training leaves them, and nothing left at its constant initial value.

    γ is in 0.5–1.5 and β normal by 0.2; σ² (0.5–1.5) and μ (normal by 0.2) are in units of what arrives at
    the layer. In units of 1, activations of some networks grow to 1e16, and no lost β or μ would show.
    Layer scales of 1e-6 and residual gates of 0 would hide a branch, and zero biases a lost bias.
    """
    import torch
    from support.networks import randomised

    randomised(module, seed)
    inside = {id(p) for _, part in batchnorms(module) for p in part.parameters()}
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            if id(parameter) not in inside and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    hooks: dict[int, Any] = {}

    def settle(part: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        hooks.pop(id(part)).remove()
        variance = inputs[0].var()
        if variance > 0:
            part.running_var *= variance
            part.running_mean *= variance.sqrt()

    for _, part in batchnorms(module):
        hooks[id(part)] = part.register_forward_pre_hook(settle)
    with torch.no_grad():
        module.eval()(x)
    for hook in hooks.values():  # of those that the forward pass does not reach
        hook.remove()
    return module


def flip_signs(module: nn.Module, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Give half of all γ the other sign; the signs by parameter name."""
    import torch

    generator = torch.Generator().manual_seed(seed + 2)
    flips: dict[str, np.ndarray[Any, Any]] = {}
    for name, part in batchnorms(module):
        if part.weight is not None:
            signs = torch.randint(0, 2, part.weight.shape, generator=generator) * 2.0 - 1.0
            with torch.no_grad():
                part.weight *= signs
            flips[f"{name}.weight"] = signs.numpy()
    return flips
