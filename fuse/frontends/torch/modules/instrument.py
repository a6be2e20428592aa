"""Instrumentation of a module's copy before its dataflow is captured: trial biases, markers and watches.

* A **trial bias** of zeros where a layer has none: if the graph reads it, the layer's forward would use
  the bias that a fold adds; no type has to be trusted.
* A **marker** at the entry and exit of hooked modules, and of a BatchNorm and its children where their classes do not
  say what they compute: an ``aten.alias`` that says which values a hook sees, and what a BatchNorm module does beside
  normalising.
* A **watch** on a BatchNorm's tensors and numbers: whether other code reads them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.modules.custom_batchnorms import layout_of, read_as_batchnorm
from convbn.fuse.frontends.torch.modules.hidden_state import run_by
from convbn.fuse.frontends.torch.modules.layers import is_one_call, plain_forward
from convbn.fuse.frontends.torch.modules.registered_convs import conv_layout_of
from convbn.fuse.frontends.torch.modules.results import nest_of

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
        read: an attribute of each BatchNorm that other code than its own forward reads, by its path.
    """

    module: torch.nn.Module
    trials: frozenset[str]
    hooked: frozenset[str]
    parts: dict[str, torch.nn.Module] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    read: dict[str, str] = field(default_factory=dict)

    @property
    def guessed(self) -> bool:
        """Whether a trial bias stands in a class that is not PyTorch's own."""
        owners = (self.parts[name.rpartition(".")[0]] for name in self.trials)
        return any(not type(owner).__module__.startswith("torch.nn.") for owner in owners)

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

    def settle_paths(self, graph: torch.fx.Graph) -> None:
        """Let the nodes of a graph name modules as they stand in ``parts``.

        torch.export names a module by the way the forward has come to it: ``layers.slice(None, -1, None).0``.
        """
        settled: dict[str, str | None] = {path: path for path in self.parts}
        for node in graph.nodes:
            found = node.meta.get("nn_module_stack", {})
            for path, _ in found.values():
                if path not in settled:
                    settled[path] = self._path_of(path)
            if any(settled[path] != path for path, _ in found.values()):
                node.meta["nn_module_stack"] = {
                    key: (settled[path], kind)
                    for key, (path, kind) in found.items()
                    if settled[path] is not None
                }

    def _path_of(self, way: str) -> str | None:
        """The path of the module that a way over attributes and slices leads to; None if it is not in the tree."""
        part: Any = self.module
        for step in re.findall(r"slice\([^)]*\)|[^.]+", way):
            if step.startswith("slice("):
                bounds = step.removeprefix("slice(").rstrip(")").split(", ")
                part = part[slice(*(None if bound == "None" else int(bound) for bound in bounds))]
            elif step in part._modules:
                part = part._modules[step]
            else:
                return None
        return next((path for path, other in self.parts.items() if other is part), None)


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


def instrument(module: torch.nn.Module, *, trust_shapes: bool = True) -> Instrumented:
    """Put trial biases, markers and watches on ``module``, which must be a copy.

    Args:
        module: the copy.
        trust_shapes: take the first axis of a weight for its outputs also in classes that are not PyTorch's own.
    """
    import torch

    # What is scripted is compiled already: nothing can be put on it, and nothing is folded in it.
    parts = {
        path: part for path, part in module.named_modules() if not isinstance(part, torch.jit.ScriptModule)
    }
    hooked = frozenset(path for path, part in parts.items() if is_hooked(part))
    own = {id(part) for part in parts.values() if layout_of(part) is not None}
    read_as_batchnorm(module)
    instrumented = Instrumented(module, frozenset(_add_trials(parts, trust_shapes=trust_shapes)), hooked)
    norms = {path: part for path, part in parts.items() if is_batchnorm_like(part) or id(part) in own}
    unknown = [norm for norm in norms.values() if not plain_forward(norm)]
    wanted = {id(part) for norm in unknown for part in (norm, *norm.children()) if not is_one_call(part)}
    for path, part in parts.items():
        if (inner := run_by(part)) is not None:
            object.__setattr__(part, "forward", inner.__call__)
        part._backward_hooks.clear()  # they change no number, and cannot be captured
        part._backward_pre_hooks.clear()
        if id(part) in wanted or path in hooked:
            _mark(instrumented, path, part)
    module.register_forward_hook(lambda *call: nest_of(call[-1]))
    for path, part in norms.items():
        _watch(instrumented, path, part)
    instrumented.parts.update(module.named_modules(remove_duplicate=False))
    for path, part in instrumented.parts.items():
        prefix = f"{path}." if path else ""
        for held in (part._parameters, part._buffers):
            instrumented.tensors.update((prefix + name, t) for name, t in held.items() if t is not None)
    return instrumented


def _add_trials(parts: Mapping[str, torch.nn.Module], *, trust_shapes: bool) -> list[str]:
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    added = []
    for path, part in parts.items():
        parameters = part._parameters
        prefix = f"{path}." if path else ""
        layout = conv_layout_of(part)
        if layout is not None:
            held = parameters.get(layout.weight)
            if held is not None and layout.bias and getattr(part, layout.bias, _MISSING) is None:
                vars(part).pop(layout.bias, None)  # None may stand there as an attribute like any other
                zeros = held.detach().new_zeros(held.shape[layout.output_axis])
                parameters[layout.bias] = torch.nn.Parameter(zeros)
                added.append(f"{prefix}{layout.bias}")
            continue
        weight, mean = parameters.get("weight"), part._buffers.get("running_mean")
        if parameters.get("bias", _MISSING) is not None:
            continue
        if isinstance(part, _ConvNd) and weight is not None:
            size = weight.shape[1] * part.groups if isinstance(part, _ConvTransposeNd) else weight.shape[0]
            parameters["bias"] = torch.nn.Parameter(weight.detach().new_zeros(size))
        elif weight is not None and (_takes_a_bias(part) or _own_layer(part, trust_shapes)):
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


def _takes_a_bias(part: torch.nn.Module) -> bool:
    """Whether a layer of PyTorch's has a number for each of its outputs, and a place for another one."""
    import torch
    from torch.nn.modules.instancenorm import _InstanceNorm

    if isinstance(part, torch.nn.LayerNorm):
        return len(part.normalized_shape) == 1
    return isinstance(part, torch.nn.Linear | torch.nn.GroupNorm | _InstanceNorm)


def _own_layer(part: torch.nn.Module, trust_shapes: bool) -> bool:
    """Whether a class of somebody's own has a weight, and a bias that could be there and is not."""
    weight, own = part._parameters["weight"], not type(part).__module__.startswith("torch.nn.")
    return trust_shapes and own and "bias" in part._parameters and weight is not None and weight.ndim > 1


_PLAIN = ("num_features", "eps", "momentum", "affine", "track_running_stats")
"""What PyTorch's BatchNorms hold beside tensors."""


_COUNTER = ("num_batches_tracked",)
"""What they count with in training."""


class _Watched(dict[str, Any]):
    """A module's parameters or buffers that tell when one is read as an attribute.

    Args:
        held: the tensors.
        plain: further attributes, which are no tensors and stand in no iteration.
        tell: is told each name.
    """

    def __init__(
        self, held: Mapping[str, Any], plain: Mapping[str, Any], tell: Callable[[str], None]
    ) -> None:
        super().__init__(held)
        self._plain = plain
        self._tell = tell

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._plain

    def __getitem__(self, name: str) -> Any:
        import torch

        if not torch.compiler.is_dynamo_compiling():  # the branch of a conditional
            self._tell(name)
        return self._plain[name] if name in self._plain else super().__getitem__(name)


def _watch(instrumented: Instrumented, path: str, part: torch.nn.Module) -> None:
    """Note what of a BatchNorm is read by other code: that would miss it where the BatchNorm is gone."""
    import torch

    inside: list[None] = []

    def tell(name: str) -> None:
        frame: Any = sys._getframe(2)
        # Above this is nn.Module's own way to an attribute, with what a tracer has put around it.
        while frame is not None and frame.f_code.co_name in (
            "__getattr__",
            "module_getattr_wrapper",
            "method",
        ):
            frame = frame.f_back
        home = "" if frame is None else frame.f_globals.get("__name__", "")
        if not inside and not home.startswith(("torch.", "convbn.")):
            instrumented.read.setdefault(path, name)

    attributes = vars(part)
    plain = {name: attributes.pop(name) for name in _PLAIN if name in attributes}
    if not part.training and plain_forward(
        part
    ):  # its forward does not look at it; one input of the graph less
        plain |= {name: part._buffers.pop(name) for name in _COUNTER if name in part._buffers}
    attributes["_parameters"] = _Watched(part._parameters, {}, tell)
    attributes["_buffers"] = _Watched(part._buffers, plain, tell)

    def enter(*_: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            inside.append(None)

    def leave(*_: Any) -> None:
        if inside and not torch.compiler.is_dynamo_compiling():
            inside.pop()

    part.register_forward_pre_hook(enter)
    part.register_forward_hook(leave, always_call=True)


def _mark(instrumented: Instrumented, path: str, part: torch.nn.Module) -> None:
    import torch
    import torch.fx
    from torch.utils import _pytree as pytree

    tensors = (torch.Tensor, torch.fx.Proxy)

    def marked(value: Any) -> Any:
        return pytree.tree_map_only(tensors, _alias, value)

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


def _alias(value: Any) -> Any:
    """Another name for a tensor in the graph that is being captured.

    An ``aten.alias`` that runs takes longer than a convolution on tensors without numbers; so what the capture made
    gets a further node, which whoever reads it later reads. What came from outside keeps its own.
    """
    import torch
    from torch.fx.experimental import proxy_tensor

    alias = torch.ops.aten.alias.default
    mode = None if isinstance(value, torch.fx.Proxy) else proxy_tensor.get_proxy_mode()
    slot = None if mode is None else proxy_tensor.get_proxy_slot(value, mode.tracer, None)
    if mode is None or slot is None or slot.proxy.node.op != "call_function":
        return alias(value)
    made = mode.tracer.create_proxy("call_function", alias, (slot.proxy,), {})
    made.node.meta["val"] = slot.proxy.node.meta["val"]
    proxy_tensor.set_proxy_slot(value, mode.tracer, replace(slot, proxy=made))
    return value
