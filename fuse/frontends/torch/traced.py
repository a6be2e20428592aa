"""Symbolic tracing: the dataflow of a module without example inputs, and without shapes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError
from convbn.fuse.frontends.torch.aten import Mapped, only_metadata, passes_through
from convbn.fuse.frontends.torch.copies import first_line
from convbn.fuse.frontends.torch.drawing import Drawing, Source, draw
from convbn.fuse.frontends.torch.layers import batchnorm_of, layer_of, plain_forward
from convbn.fuse.frontends.torch.preparation import Prepared, is_batchnorm_like
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.ops import BatchNorm, Other

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["draw_traced", "only_shape", "trace"]

_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda")
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_SHAPE_METHODS = ("size", "dim", "ndimension", "numel", "stride", "get_device")


def trace(module: torch.nn.Module) -> torch.fx.Graph:
    """The graph of a module, by symbolic tracing.

    Raises:
        BadInputError: the forward branches on what only a run knows, or does something else FX cannot trace.
    """
    import torch.fx

    class Tracer(torch.fx.Tracer):
        """Stops at layers whose forward is known, and at BatchNorms that cannot be traced."""

        # Otherwise tracing itself would update the counters of the module at hand.
        proxy_buffer_attributes = True

        def is_leaf_module(self, part: torch.nn.Module, path: str) -> bool:
            if layer_of(part) is not None or plain_forward(part):
                return True
            if is_batchnorm_like(part):
                return "forward" not in vars(part) and not _traceable(part)
            return super().is_leaf_module(part, path)

    try:
        return Tracer().trace(module)
    except Exception as error:  # whatever the user's forward raises when run on proxies
        raise BadInputError(
            f"its forward cannot be traced without inputs ({first_line(error)})",
            source=type(module).__name__,
            hint="give example_inputs, or export it with torch.export.export and fold the program",
        ) from error


def _traceable(part: torch.nn.Module) -> bool:
    import torch.fx

    class Tracer(torch.fx.Tracer):
        proxy_buffer_attributes = True

    try:
        Tracer().trace(part)
    except Exception:  # the user's forward may raise anything
        return False
    return True


def draw_traced(prepared: Prepared, graph: torch.fx.Graph, **facts: Any) -> Drawing:
    """The drawing of a traced graph; ``facts`` are further fields of :class:`Source`."""
    module = prepared.module
    state: dict[str, Any] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    refused: dict[str, Refusal] = {}
    names: dict[torch.fx.Node, str] = {}
    mapper = _mapper(module, state)
    for node in graph.nodes:
        if node.op == "call_module":
            part = module.get_submodule(str(node.target))
            for name in _TENSORS if layer_of(part) is not None or is_batchnorm_like(part) else ():
                full = f"{node.target}.{name}"
                if full not in state and getattr(part, name, None) is not None:
                    state[full] = getattr(part, name)
                    refused[full] = Refusal(
                        Reason.PARAMETRIZED,
                        f"'{full}' is computed from other tensors (a parametrization, weight norm or "
                        "pruning), which must be removed first",
                    )
        elif node.op == "get_attr" and str(node.target) in state:
            names[node] = str(node.target)
            if any(mapper(user) is None and not only_shape(user) for user in node.users):
                refused[names[node]] = Refusal(
                    Reason.WEIGHT_NOT_CONSTANT,
                    f"the forward uses '{node.target}' too, perhaps to write to it (example inputs tell)",
                )
    source = Source(
        graph,
        state,
        names,
        mapper,
        refused=refused,
        absent=prepared.trials,
        cloneable=False,
        metadata=only_shape,
        handed_on=lambda node: _identity(module, node),
        ranks=_ranks(module, graph),
        **facts,
    )
    return draw(source)


def _mapper(module: torch.nn.Module, state: dict[str, Any]) -> Callable[[torch.fx.Node], Mapped | None]:
    import torch.nn.functional as functional

    def known(path: str, names: tuple[str, ...]) -> tuple[str | None, ...]:
        full = (f"{path}.{name}" for name in names)
        return tuple(name if state.get(name) is not None else None for name in full)

    def read(node: torch.fx.Node) -> Mapped | None:
        if node.op == "call_function" and node.target is functional.batch_norm:
            return _functional(node)
        if node.op != "call_module":
            return None
        path = str(node.target)
        part = module.get_submodule(path)
        layer = layer_of(part)
        if node.args == tuple(node.all_input_nodes) and len(node.args) == 1:  # its data and nothing else
            if layer is not None:
                return Mapped(layer, (*node.all_input_nodes, *known(path, _TENSORS[:2])))
            if is_batchnorm_like(part):
                return Mapped(batchnorm_of(part), (*node.all_input_nodes, *known(path, _TENSORS)))
        # A module that is not looked into reads all its parameters.
        inside = (f"{path}.{name}" for name, _ in part.named_parameters())
        return Mapped(Other(type(part).__name__), (*node.all_input_nodes, *inside))

    return read


def _functional(node: torch.fx.Node) -> Mapped:
    order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {"training": False, "eps": 1e-5}
    given.update(zip(order, node.args, strict=False))
    given.update(node.kwargs)
    slots = (given.get(name) for name in ("input", "weight", "bias", "running_mean", "running_var"))
    # A flag that is computed while the model runs may be either; the fold needs it to be False.
    op = BatchNorm(float(given["eps"]), training=given["training"] is not False)
    return Mapped(op, tuple(value if isinstance(value, type(node)) else None for value in slots))


def only_shape(node: torch.fx.Node) -> bool:
    """Whether a node of a traced graph looks at the shape, dtype or device of a tensor only."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _SHAPE_ATTRIBUTES
    return only_metadata(node)


def _identity(module: torch.nn.Module, node: torch.fx.Node) -> torch.fx.Node | None:
    """The input of a module that hands it on as it is, such as a dropout outside training."""
    from torch import nn
    from torch.nn.modules.dropout import _DropoutNd

    if node.op != "call_module":
        return passes_through(node)
    part = module.get_submodule(str(node.target))
    idle = type(part) is nn.Identity or (isinstance(part, _DropoutNd) and not part.training)
    source = node.args[0] if idle and len(node.args) == 1 else None
    return source if isinstance(source, type(node)) else None


def _ranks(module: torch.nn.Module, graph: torch.fx.Graph) -> dict[torch.fx.Node, int]:
    """Ranks that a run would refuse to differ from: by a BatchNorm's own check, or by an assertion."""
    import torch
    from torch import nn

    ranks: dict[torch.fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            part = module.get_submodule(str(node.target))
            for base, rank in ((nn.BatchNorm2d, 4), (nn.BatchNorm3d, 5)):
                checks = type(part)._check_input_dim if isinstance(part, base) else None
                if checks is base._check_input_dim and plain_forward(part):
                    ranks.update((read, rank) for read in (node, *node.all_input_nodes[:1]))
        elif node.op == "call_function" and node.target is torch._assert:
            asserted = node.args[0]
            if not isinstance(asserted, type(node)) or asserted.target is not operator.eq:
                continue
            left, right = asserted.args
            if isinstance(left, type(node)) and isinstance(right, int) and left.target is getattr:
                value, attribute = left.args
                if attribute == "ndim" and isinstance(value, type(node)):
                    ranks[value] = right
    return ranks
