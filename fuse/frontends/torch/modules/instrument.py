"""Instrumentation of a module's copy before its dataflow is captured: trial biases and markers.

* A **trial bias** of zeros where a layer has none: if the graph reads it, the layer's forward would use
  the bias that a fold adds; no type has to be trusted.
* A **marker** at the entry and exit of a BatchNorm, of its children and of hooked modules: an
  ``aten.alias`` that says which values a hook sees, and what a BatchNorm module does beside normalising.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.modules.custom_batchnorms import layout_of, read_as_batchnorm

if TYPE_CHECKING:
    import torch

__all__ = ["Instrumented", "instrument", "is_batchnorm_like", "is_hooked"]

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Instrumented:
    """A copy of a module, ready to be captured.

    Attributes:
        module: it shares its tensors with the original.
        trials: names of parameters that the original does not have.
        hooked: paths of modules with hooks.
        parts, tensors: every module, parameter and buffer under each of its names.
        opaque: paths of marked modules that were called with, or gave, more than one tensor.
        called: paths of marked modules that were called.
    """

    module: torch.nn.Module
    trials: frozenset[str]
    hooked: frozenset[str]
    parts: dict[str, torch.nn.Module] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)

    @property
    def facts(self) -> dict[str, Any]:
        """What a graph of the module says no better: its trial tensors, and one path for each of its parts."""
        first: dict[int, str] = {}
        paths = {path: first.setdefault(id(part), path) for path, part in self.parts.items()}
        return {"absent": self.trials, "graph_form": False, "paths": paths}

    @property
    def tensor_names(self) -> dict[int, str]:
        """The first name of each tensor, by its id."""
        return {id(tensor): name for name, tensor in reversed(self.tensors.items())}


def is_hooked(part: torch.nn.Module) -> bool:
    """Whether somebody looks at, or changes, what goes into a module or comes out of it."""
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    # These compute a weight before the module runs and look at no data.
    weights = (BasePruningMethod, SpectralNorm, WeightNorm)
    before = [hook for hook in part._forward_pre_hooks.values() if not isinstance(hook, weights)]
    return bool(before or part._forward_hooks or part._backward_hooks or part._backward_pre_hooks)


def is_batchnorm_like(part: torch.nn.Module) -> bool:
    """Whether a module holds running statistics, or is a BatchNorm by type."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(part, _BatchNorm) or "running_mean" in part._buffers


def instrument(module: torch.nn.Module) -> Instrumented:
    """Put trial biases and markers on ``module``, which must be a copy."""
    hooked = frozenset(path for path, part in module.named_modules() if is_hooked(part))
    own = {id(part) for part in module.modules() if layout_of(part) is not None}
    read_as_batchnorm(module)
    instrumented = Instrumented(module, frozenset(_add_trials(module)), hooked)
    norms = [part for part in module.modules() if is_batchnorm_like(part) or id(part) in own]
    wanted = {id(part) for norm in norms for part in (norm, *norm.children())}
    for path, part in list(module.named_modules()):
        part._backward_hooks.clear()  # they change no number, and cannot be captured
        part._backward_pre_hooks.clear()
        if id(part) in wanted or path in hooked:
            _mark(instrumented, path, part)
    instrumented.parts.update(module.named_modules(remove_duplicate=False))
    for path, part in instrumented.parts.items():
        prefix = f"{path}." if path else ""
        for held in (part._parameters, part._buffers):
            instrumented.tensors.update((prefix + name, t) for name, t in held.items() if t is not None)
    return instrumented


def _add_trials(module: torch.nn.Module) -> list[str]:
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    added = []
    for path, part in module.named_modules():
        parameters = part._parameters
        prefix = f"{path}." if path else ""
        weight, mean = parameters.get("weight"), part._buffers.get("running_mean")
        if parameters.get("bias", _MISSING) is not None:
            continue
        if isinstance(part, _ConvNd) and weight is not None:
            size = weight.shape[1] * part.groups if isinstance(part, _ConvTransposeNd) else weight.shape[0]
            parameters["bias"] = torch.nn.Parameter(weight.detach().new_zeros(size))
        elif isinstance(part, torch.nn.Linear) and weight is not None:
            parameters["bias"] = torch.nn.Parameter(weight.detach().new_zeros(weight.shape[0]))
        elif isinstance(part, _BatchNorm) and mean is not None:
            parameters["bias"] = torch.nn.Parameter(torch.zeros_like(mean))
            if parameters.get("weight", _MISSING) is None:
                parameters["weight"] = torch.nn.Parameter(torch.ones_like(mean))
                added.append(f"{prefix}weight")
        else:
            continue
        added.append(f"{prefix}bias")
    return added


def _mark(instrumented: Instrumented, path: str, part: torch.nn.Module) -> None:
    import torch
    import torch.fx
    from torch.utils import _pytree as pytree

    tensors = (torch.Tensor, torch.fx.Proxy)

    def marked(value: Any) -> Any:
        return pytree.tree_map_only(tensors, torch.ops.aten.alias.default, value)

    def enter(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return None  # the branch of a conditional, which may leave no traces and is not edited
        instrumented.called.add(path)
        if kwargs or len(args) != 1 or not isinstance(args[0], tensors):
            instrumented.opaque.add(path)
        return marked(args), marked(kwargs)

    def leave(_: torch.nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return None
        if not isinstance(result, tensors):
            instrumented.opaque.add(path)
        return marked(result)

    part.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
    part.register_forward_hook(leave)
