"""Weights that are computed from parameters each time a module runs, made parameters: for inference, ``--materialize``.

Weight norm, spectral norm, pruning and the parametrizations of torch.nn.utils hold what a weight is computed from. A
fold can give new numbers to a weight, not to what it is computed from; with the weight itself in its place it can.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.materialize.plain_layers import plain_layer_of
from convbn.fuse.frontends.torch.modules.copies import duplicate

if TYPE_CHECKING:
    import torch

__all__ = ["OTHER_FORMS", "materializable", "materialize", "materialized"]

OTHER_FORMS = "an exported program and an ONNX model fold it, a module with --materialize"
"""What a reader of a report can do about a computed weight."""

_Weights = Mapping[str, Callable[[], "torch.Tensor"]]


def materialized(
    module: torch.nn.Module, only: Collection[str] | None = None
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """A copy whose computed weights are parameters, and what was made of it.

    Args:
        module: it is not changed; the copy shares its other parameters, and has buffers of its own.
        only: paths of modules that computed their weights when they were folded: these are changed whatever numbers
            they hold now, and no others.

    Returns:
        The copy, and the paths of the modules that were changed in it.
    """
    own = {id(buffer): buffer.detach().clone() for buffer in module.buffers()}
    copied = duplicate(module, share=True, memo=own)
    return copied, materialize(copied, only)


def materialize(module: torch.nn.Module, only: Collection[str] | None = None) -> tuple[str, ...]:
    """Make parameters of the computed weights of a module, in place.

    A weight that is not the same at every call (spectral norm in training mode, a random mask) stays as it is. A layer
    of another class whose own forward computes its weight becomes the layer of torch.nn that it is.

    Args:
        module: its parts in eval mode are changed.
        only: see :func:`materialized`.

    Returns:
        The paths of the modules that were changed.
    """
    import torch

    found = []
    instead: dict[int, torch.nn.Module] = {}
    for path, part in module.named_modules():
        if (
            isinstance(part, torch.jit.ScriptModule)
            or part.training
            or (only is not None and path not in only)
        ):
            continue
        weights = _values(_computed(part), fixed=only is None)
        if weights:
            _release(part, weights)
        hooked = bool(part._forward_pre_hooks or part._forward_hooks)
        plain = plain_layer_of(part) if path and not hooked else None
        if plain is not None:
            instead[id(part)] = plain
        if weights or plain is not None:
            found.append(path)
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if id(child) in instead:
                parent._modules[name] = instead[id(child)]
    return tuple(found)


def materializable(part: torch.nn.Module) -> bool:
    """Whether :func:`materialize` would change a module; it is not changed by asking."""
    return not part.training and (bool(_computed(part)) or plain_layer_of(part) is not None)


def _hooks(part: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The hooks that compute a tensor before a module runs, and its name."""
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    for hook in part._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm | WeightNorm):
            yield hook.name, hook
        elif isinstance(hook, BasePruningMethod):
            yield str(hook._tensor_name), hook


def _parametrizations(part: torch.nn.Module) -> dict[str, Any]:
    """What computes a tensor whenever it is read, by its name."""
    # Not as an attribute, which a wrapper may answer with what it wraps.
    held: Any = part._modules.get("parametrizations") or {}
    return {str(name): held[name] for name in held}


def _computed(part: torch.nn.Module) -> _Weights:
    """What computes each of a module's tensors that is computed."""
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm

    def by_hook(hook: Any) -> Callable[[], torch.Tensor]:
        if isinstance(hook, SpectralNorm):
            return lambda: hook.compute_weight(part, do_power_iteration=False)
        return lambda: (hook.apply_mask if isinstance(hook, BasePruningMethod) else hook.compute_weight)(part)

    by_reading = {name: held.forward for name, held in _parametrizations(part).items()}
    return {name: by_hook(hook) for name, hook in _hooks(part)} | by_reading


def _values(computed: _Weights, *, fixed: bool) -> dict[str, torch.Tensor]:
    """The tensors; none of them if they have to be fixed and one of them is another at every call."""
    import torch

    with torch.no_grad():
        tensors = {name: compute().detach().clone() for name, compute in computed.items()}
        same = all(torch.equal(tensors[name], compute()) for name, compute in computed.items())
    return tensors if same or not fixed else {}


def _release(part: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Make computed tensors parameters, and forget what they were computed from."""
    import torch
    from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
    from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
    from torch.nn.utils.weight_norm import WeightNorm

    sources = {name: list(held.parameters(recurse=False)) for name, held in _parametrizations(part).items()}
    if sources:
        # PyTorch's own way takes the property off the class, which the original has in common.
        del part._modules["parametrizations"]
        part.__class__ = type(part).__bases__[0]
    for name, hook in list(_hooks(part)):
        own = [key for key in part._parameters if key.startswith(f"{name}_")]
        sources[name] = [tensor for key in own if (tensor := part._parameters[key]) is not None]
        if isinstance(hook, WeightNorm):
            remove_weight_norm(part, name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(part, name)
            for key, loading in list(part._load_state_dict_pre_hooks.items()):
                # PyTorch does not find it in the wrapper that it has put around it.
                if isinstance(getattr(loading, "hook", loading), SpectralNormLoadStateDictPreHook):
                    del part._load_state_dict_pre_hooks[key]
        else:  # this one writes to the parameter, which the original has in common
            part._parameters[f"{name}_orig"] = torch.nn.Parameter(weights[name].clone())
            prune.remove(part, name)  # type: ignore[no-untyped-call]
        delattr(part, name)
    for name, weight in weights.items():
        if sources[name]:
            trains = any(tensor.requires_grad for tensor in sources[name])
            setattr(part, name, torch.nn.Parameter(weight, requires_grad=trains))
        else:
            part.register_buffer(name, weight)
