"""Layers of other classes that are layers of torch.nn whose weight the forward computes first.

Weight standardisation normalises it, equalised learning rates scale it; InPlaceABN takes ``|γ| + ε`` and applies
an activation. Which layer one is, its own forward says: of a convolution or a product it is watched what the forward
hands to PyTorch's function, on data of two sizes, once without numbers; a BatchNorm with an activation is compared
with what it is taken for, in float64 on random tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.modules.layers import plain_forward

if TYPE_CHECKING:
    import torch

__all__ = ["built", "plain_layer_of"]

_VECTORS = ("weight", "bias", "running_mean", "running_var")


def plain_layer_of(part: torch.nn.Module) -> torch.nn.Module | None:
    """The layer of torch.nn that a module computes, with its computed weight as a parameter.

    Args:
        part: it is not changed.

    Returns:
        A new module; None for a layer of torch.nn itself, for one whose weight is its parameter already, and for
        whatever does anything else.
    """
    tensors = {**part._parameters, **part._buffers}
    home = type(part).__module__
    if home.startswith("torch.") or "forward" in vars(part):
        return None
    if part.training or not tensors or any(True for child in part.children() for _ in child.parameters()):
        return None
    if all(getattr(tensors.get(name), "ndim", 0) == 1 for name in _VECTORS):
        return _activated_batchnorm(part)
    weight = next((held for held in part._parameters.values() if held is not None and held.ndim > 1), None)
    return None if weight is None or plain_forward(part) else _layer(part, weight)


# --- convolutions and products ----------------------------------------------------------------------------------------


def _layer(part: torch.nn.Module, weight: torch.nn.Parameter) -> torch.nn.Module | None:

    spatial = weight.ndim - 2
    groups = getattr(part, "groups", 1)
    asked = (getattr(part, "in_channels", None), getattr(part, "in_features", None))
    guesses = [*asked, weight.shape[1] * (groups if type(groups) is int else 1), weight.shape[0]]
    for channels in dict.fromkeys(size for size in guesses if type(size) is int):
        calls = [
            _tried(part, weight.new_full((batch, channels, *[size] * spatial), number))
            for batch, size, number in ((2, 33, 0.5), (3, 47, float("nan")))
        ]
        if calls[0] is not None:
            found = calls[1] is not None and _same(calls[0], calls[1]) and calls[0]["weight"] is not weight
            return built(part, calls[0]["function"].__name__, calls[0]) if found else None
    return None


def _tried(part: torch.nn.Module, data: torch.Tensor) -> dict[str, Any] | None:
    import torch

    try:
        with torch.no_grad():
            return _call_of(part, data)
    except Exception:  # whatever a forward raises that takes something else
        return None


def _call_of(part: torch.nn.Module, data: torch.Tensor) -> dict[str, Any] | None:
    """The arguments of the one layer's function that a forward calls: on its data, and gives back the result of."""
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    common = ("input", "weight", "bias")
    names: dict[Any, tuple[str, ...]] = {functional.linear: common}
    for n in (1, 2, 3):
        plain, transposed = getattr(functional, f"conv{n}d"), getattr(functional, f"conv_transpose{n}d")
        names[plain] = (*common, "stride", "padding", "dilation", "groups")
        names[transposed] = (*common, "stride", "padding", "output_padding", "groups", "dilation")
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func not in names:
                return func(*args, **(kwargs or {}))
            given = {**dict(zip(names[func], args, strict=False)), **(kwargs or {})}
            size = func(**{key: _without_numbers(value) for key, value in given.items()}).shape
            result = data.new_zeros(size)
            calls.append(({"function": func, **given}, result))
            return result

    with Watch():
        result = type(part).forward(part, data)
    if len(calls) != 1 or calls[0][0]["input"] is not data or calls[0][1] is not result:
        return None
    return calls[0][0]


def _without_numbers(value: Any) -> Any:
    import torch

    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two calls differ in their data alone."""
    import torch

    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return torch.equal(one, other)
        return type(one) is type(other) and one == other

    own = first.keys() - {"input"}
    return own == second.keys() - {"input"} and all(equal(first[key], second[key]) for key in own)


def built(part: torch.nn.Module, name: str, call: Mapping[str, Any]) -> torch.nn.Module:
    """The layer of torch.nn that makes a call.

    Args:
        part: what makes it now.
        name: of PyTorch's function, such as ``conv2d``.
        call: its arguments, by name.
    """
    from torch import nn

    weight, bias = call["weight"], call.get("bias")
    if name == "linear":
        outputs, inputs = weight.shape
        layer: Any = nn.Linear(inputs, outputs, bias=False, device="meta")
    else:
        kind = getattr(nn, {"conv": "Conv", "conv_transpose": "ConvTranspose"}[name[:-2]] + name[-2:])
        groups = call.get("groups", 1)
        sizes = (weight.shape[1] * groups, weight.shape[0])
        inputs, outputs = (sizes[1], sizes[0]) if "transpose" in name else sizes
        further = ("stride", "padding", "output_padding", "dilation", "groups")
        settings = {key: call[key] for key in further if key in call}
        layer = kind(inputs, outputs, tuple(weight.shape[2:]), bias=False, device="meta", **settings)
    trains = any(parameter.requires_grad for parameter in part.parameters())
    layer.weight = nn.Parameter(weight.detach().clone(), trains)
    if bias is not None:
        stored = isinstance(bias, nn.Parameter)
        layer.bias = bias if stored else nn.Parameter(bias.detach().clone(), trains)
    return layer.eval()  # type: ignore[no-any-return]


# --- BatchNorms with an activation ------------------------------------------------------------------------------------


def _activated_batchnorm(part: torch.nn.Module) -> torch.nn.Module | None:
    """A BatchNorm whose γ is computed, or that applies an activation, as a BatchNorm and the activation."""
    import torch
    from torch import nn
    from torch.nn.functional import batch_norm

    eps: Any = getattr(part, "eps", None)
    if type(eps) is not float or plain_forward(part) or part._modules:
        return None
    draws = torch.Generator("cpu").manual_seed(0)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, dtype=torch.float64, device="cpu", generator=draws)

    probe = copy.deepcopy(part).cpu().double()
    size: Any = probe.running_mean.shape
    drawn = {name: random(*size) for name in _VECTORS}
    drawn["running_var"].square_()
    for name, tensor in drawn.items():
        held: dict[str, Any] = probe._parameters if name in probe._parameters else probe._buffers
        held[name] = tensor
    kind = _kind(part)
    sides = {nn.BatchNorm1d: (7,), nn.BatchNorm3d: (5, 3, 4)}.get(kind, (7, 9))
    x = random(2, *size, *sides)
    weight, bias, mean, variance = drawn.values()
    scales: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "γ": lambda gamma: gamma,
        "|γ|": torch.abs,
        "|γ| + ε": lambda gamma: gamma.abs() + eps,
    }
    try:
        with torch.no_grad():
            wanted = type(probe).forward(probe, x.clone())  # InPlaceABN writes to its data
            for name, scale in scales.items():
                normalised = batch_norm(x, mean, variance, scale(weight), bias, False, 0.0, eps)
                for activation in _activations(normalised, wanted):
                    known = name == "γ" and type(activation) is nn.Identity
                    if torch.allclose(activation(normalised), wanted, rtol=1e-9, atol=1e-9):
                        return None if known else _apart(part, scale, activation)
    except Exception:  # whatever a forward raises that is for something else
        return None
    return None


def _activations(before: torch.Tensor, behind: torch.Tensor) -> Iterator[torch.nn.Module]:
    """Activations that may have made one of the other, with the factor that the lowest number shows."""
    from torch import nn

    lowest = before.argmin()
    x, y = before.flatten()[lowest], behind.flatten()[lowest]
    yield from (nn.Identity(), nn.ReLU(), nn.SiLU())
    yield nn.LeakyReLU(float(f"{float(y / x):.9g}"))
    yield nn.ELU(float(f"{float(y / x.expm1()):.9g}"))


def _kind(part: torch.nn.Module) -> Any:
    """The BatchNorm that a module is by its class; of another class nothing says what ranks it takes, and this does."""
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return next((known for known in kinds if isinstance(part, known)), nn.SyncBatchNorm)


def _apart(
    part: torch.nn.Module, scale: Callable[[torch.Tensor], torch.Tensor], activation: torch.nn.Module
) -> torch.nn.Module:
    import torch
    from torch import nn

    weight: Any = part.weight
    norm = _kind(part)(weight.numel(), eps=float(part.eps), device="meta")  # type: ignore[arg-type]
    norm._buffers |= part._buffers
    if norm.num_batches_tracked is not None and norm.num_batches_tracked.is_meta:
        norm.num_batches_tracked = torch.tensor(0)
    bias: Any = part.bias
    norm.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)
    norm.weight = nn.Parameter(scale(weight.detach()).clone(), weight.requires_grad)
    found = norm if type(activation) is nn.Identity else nn.Sequential(norm, activation)
    return found.eval()
