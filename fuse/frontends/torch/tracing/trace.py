"""Symbolic tracing: the dataflow of a module without example inputs, and without shapes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from convbn.common.text import named_line
from convbn.errors import BadInputError
from convbn.fuse.frontends.torch.calls.aten import read
from convbn.fuse.frontends.torch.calls.schema import only_metadata, passes_through, schema_of, shown_by
from convbn.fuse.frontends.torch.graph_view.build import CapturedGraph
from convbn.fuse.frontends.torch.materialize.weights import OTHER_FORMS
from convbn.fuse.frontends.torch.modules.hidden_state import run_by
from convbn.fuse.frontends.torch.modules.instrument import Instrumented, is_batchnorm_like
from convbn.fuse.frontends.torch.modules.layers import batchnorm_of, layer_of, plain_forward
from convbn.fuse.frontends.torch.modules.registered_convs import conv_layout_of
from convbn.fuse.frontends.torch.modules.results import nest_of
from convbn.fuse.frontends.torch.tracing.aten_names import (
    AUGMENTED,
    call_of_module,
    gives_new_memory,
    named_call,
    writes_in_place,
)
from convbn.fuse.frontends.torch.tracing.shapes import TracedShapes, is_pointwise, is_pointwise_module
from convbn.fuse.operators.calls import AtenCall, Mapped
from convbn.fuse.operators.registry import aten_rows
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.op import Other

if TYPE_CHECKING:
    import torch
    import torch.fx

Parts = Mapping[str, "torch.nn.Module"]

__all__ = ["only_shape", "trace", "traced_graph"]

_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda")
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_SHAPE_METHODS = ("size", "dim", "ndimension", "numel", "stride", "get_device")


def trace(instrumented: Instrumented) -> torch.fx.Graph:
    """The graph of a instrumented module, by symbolic tracing.

    Raises:
        BadInputError: the forward branches on what only a run knows, or does something else FX cannot trace.
    """
    import torch.fx

    module = instrumented.module
    names = instrumented.tensor_names

    class Tracer(torch.fx.Tracer):
        """Stops at layers whose forward is known, and at what else is told of, where it is to leave that whole."""

        # Otherwise tracing itself would update the counters of the module at hand.
        proxy_buffer_attributes = True
        whole = False

        def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
            return _in_place_proxy()(node, self)

        def call_module(self, m: Any, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Layers name their data so; what a layer is given is looked for at its place.
            if not args and kwargs.keys() == {"input"} and type(m).__module__.startswith("torch.nn."):
                args, kwargs = (kwargs["input"],), {}
            return super().call_module(m, forward, args, kwargs)

        def is_leaf_module(self, part: torch.nn.Module, path: str) -> bool:
            if layer_of(part) is not None or plain_forward(part):
                return True
            if is_batchnorm_like(part) or conv_layout_of(part) is not None:
                return self.whole and "forward" not in vars(part) and not _traceable(part)
            return run_by(part) is None and super().is_leaf_module(part, path)

        def create_arg(self, a: Any) -> Any:
            # What is in a nest comes here by itself.
            known = isinstance(
                a, torch.fx.Proxy | torch.Tensor | tuple | list | dict | str | int | float | None
            )
            return super().create_arg(a if known else nest_of(a))

        def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
            # As the base class does it, which goes through all names to find one.
            name = names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
            if name is None:
                return super().getattr(attr, attr_val, parameter_proxy_cache)
            if name not in parameter_proxy_cache:
                parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
            return parameter_proxy_cache[name]

    try:
        try:
            return Tracer().trace(module)
        except Exception:  # the user's code may raise anything; the second try says what is wrong
            tracer = Tracer()
            tracer.whole = True
            return tracer.trace(module)
    except Exception as error:  # whatever the user's forward raises when run on proxies
        raise BadInputError(
            f"its forward cannot be traced without inputs ({named_line(error)})",
            source=type(module).__name__,
            hint="give example_inputs, or export it with torch.export.export and fold the program",
        ) from error


@cache
def _in_place_proxy() -> type[torch.fx.Proxy]:
    """Proxies on which ``+=`` and the like are what they are on tensors; FX itself would record a plain ``+``."""
    import torch.fx

    def recorded(name: str) -> Callable[[torch.fx.Proxy, Any], torch.fx.Proxy]:
        def call(self: torch.fx.Proxy, other: Any) -> torch.fx.Proxy:
            return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

        return call

    return type("InPlaceProxy", (torch.fx.Proxy,), {f"__{name}__": recorded(name) for name in AUGMENTED})


def _traceable(part: torch.nn.Module) -> bool:
    import torch.fx

    class Tracer(torch.fx.Tracer):
        proxy_buffer_attributes = True

    try:
        Tracer().trace(part)
    except Exception:  # the user's forward may raise anything
        return False
    return True


def traced_graph(instrumented: Instrumented, graph: torch.fx.Graph) -> CapturedGraph:
    """A traced graph and what is known about it."""
    parts = instrumented.parts
    state: dict[str, Any] = dict(instrumented.tensors)
    refused: dict[str, Refusal] = {}
    names: dict[torch.fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            part = parts[str(node.target)]
            for name in _TENSORS if layer_of(part) is not None or is_batchnorm_like(part) else ():
                full = f"{node.target}.{name}"
                if full not in state and getattr(part, name, None) is not None:
                    state[full] = getattr(part, name)
                    refused[full] = Refusal(
                        Reason.PARAMETRIZED,
                        f"'{full}' is computed from other tensors (a parametrization, weight norm or "
                        f"pruning): {OTHER_FORMS}",
                    )
        elif node.op == "get_attr" and str(node.target) in state:
            names[node] = str(node.target)
    shapes = TracedShapes(parts, graph, state, names)
    mapper = cache(lambda node: _mapped(parts, state, node, shapes.call(node)))
    identity = cache(lambda node: _identity(parts, node))
    writes = cache(lambda node: writes_in_place(node, parts))
    for node, name in names.items():
        if any(mapper(user) is None and not only_shape(user) for user in node.users):
            refused[name] = Refusal(
                Reason.WEIGHT_NOT_CONSTANT,
                f"the forward uses '{name}' too, perhaps to write to it (example inputs tell)",
            )
    return CapturedGraph(
        graph,
        state,
        names,
        mapper,
        refused=refused,
        metadata=only_shape,
        handed_on=identity,
        writes=writes,
        shows=cache(lambda node: _shows(parts, node, identity(node), writes(node))),
        shape=shapes.shape,
        **instrumented.facts,
    )


def _mapped(
    parts: Parts, state: Mapping[str, Any], node: torch.fx.Node, call: AtenCall | None
) -> Mapped | None:
    """What a node computes, None where there is no operator of the view for it."""
    found = None if call is None else read(call)
    if node.op != "call_module":
        return found
    path, reads = str(node.target), tuple(node.all_input_nodes)
    part = parts[path]

    def known(*names: str) -> tuple[str | None, ...]:
        full = (f"{path}.{name}" for name in names)
        return tuple(name if state.get(name) is not None else None for name in full)

    conv = conv_layout_of(part)
    if conv is not None and reads:
        taken = (reads[0], *known(conv.weight, conv.bias or ""), *reads[1:])
        return Mapped(conv.op(type(part).__name__), taken, (None,) * len(taken))
    if node.args == reads and len(reads) == 1:  # its data and nothing else
        layer = layer_of(part)
        if layer is not None:
            return Mapped(layer, (*reads, *known("weight", "bias")))
        if is_batchnorm_like(part):
            slots = known("weight", "bias", "running_mean", "running_var")
            return Mapped(batchnorm_of(part), (*reads, *slots))
        if found is not None:
            return found
    # A module that is not looked into reads all its parameters.
    inside = (f"{path}.{name}" for name, _ in part.named_parameters())
    return Mapped(Other(type(part).__name__), (*reads, *inside))


def only_shape(node: torch.fx.Node) -> bool:
    """Whether a node of a traced graph looks at the shape, dtype or device of a tensor only."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _SHAPE_ATTRIBUTES
    return only_metadata(node)


def _identity(parts: Parts, node: torch.fx.Node) -> torch.fx.Node | None:
    """The input of a module that hands it on as it is, such as a dropout outside training."""
    from torch import nn
    from torch.nn.modules.dropout import _DropoutNd

    source: Any = None
    if node.op == "call_module":
        part = parts[str(node.target)]
        idle = type(part) is nn.Identity or (isinstance(part, _DropoutNd) and not part.training)
        source = node.args[0] if idle and len(node.args) == 1 else None
    elif node.op == "call_method" and node.target == "detach":
        source = node.args[0]
    else:
        call = named_call(node)
        if call is None or call.name != "dropout":
            return passes_through(node)
        source = call.given.get("self")
    return source if isinstance(source, type(node)) else None


def _shows(
    parts: Parts, node: torch.fx.Node, handed_on: torch.fx.Node | None, written: list[torch.fx.Node]
) -> torch.fx.Node | None:
    """The tensor in whose memory the result of a call may lie: unknown calls may give back what they get."""
    if handed_on is not None or node.op not in ("call_module", "call_function", "call_method"):
        return handed_on
    if written:
        return written[0]
    if schema_of(node) is not None:
        return shown_by(node)
    part = parts[str(node.target)] if node.op == "call_module" else None
    return None if _fresh(part, node) else next(iter(node.all_input_nodes), None)


def _fresh(part: torch.nn.Module | None, node: torch.fx.Node) -> bool:
    """Whether the result lies in memory of its own, unless the call was told to work in place."""
    if part is None:
        return gives_new_memory(node) or is_pointwise(node, views=False)
    if (call := call_of_module(part, node)) is not None:
        return any(row.fresh for row in aten_rows(call.name))
    layer = layer_of(part) is not None or is_batchnorm_like(part)
    return layer or is_pointwise_module(part, views=False)
