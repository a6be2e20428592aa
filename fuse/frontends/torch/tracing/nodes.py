"""The nodes of a traced graph in the words of the dataflow view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.call import Call, Mapped
from convbn.fuse.frontends.torch.calls.operators import READERS
from convbn.fuse.frontends.torch.modules.instrument import is_batchnorm_like
from convbn.fuse.frontends.torch.modules.layers import batchnorm_of, layer_of
from convbn.fuse.frontends.torch.tracing.aten_names import call_of_module, named_call
from convbn.fuse.frontends.torch.tracing.shapes import TracedShapes
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.view.op import Other

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["TracedCalls"]


class TracedCalls:
    """Answers for one traced module.

    Args:
        parts: every module of what was traced, by its paths.
        state: its tensors by name.
        shapes: of the graph's nodes.
    """

    def __init__(
        self, parts: Mapping[str, torch.nn.Module], state: Mapping[str, Any], shapes: TracedShapes
    ) -> None:
        self._parts = parts
        self._state = state
        self._shapes = shapes

    def __call__(self, node: torch.fx.Node) -> Mapped | None:
        """What a node computes, None where there is no operator of the view for it."""
        import torch.nn.functional as functional

        if node.op == "call_module":
            return self._module_call(node)
        if node.op not in ("call_function", "call_method"):
            return None
        if node.target is functional.batch_norm:
            return _functional(node)
        named = named_call(node)
        read = None if named is None else READERS.get(named[0])
        return None if named is None or read is None else read(Call(node, named[1], self._shapes.of))

    def _module_call(self, node: torch.fx.Node) -> Mapped:
        path = str(node.target)
        part = self._parts[path]
        reads = tuple(node.all_input_nodes)
        if node.args == reads and len(reads) == 1:  # its data and nothing else
            layer = layer_of(part)
            if layer is not None:
                return Mapped(layer, (*reads, *self._known(path, ("weight", "bias"))))
            if is_batchnorm_like(part):
                slots = self._known(path, ("weight", "bias", "running_mean", "running_var"))
                return Mapped(batchnorm_of(part), (*reads, *slots))
            named = call_of_module(part, reads[0])
            read = None if named is None else READERS.get(named[0])
            found = None if named is None or read is None else read(Call(node, named[1], self._shapes.of))
            if found is not None:
                return found
        # A module that is not looked into reads all its parameters.
        inside = (f"{path}.{name}" for name, _ in part.named_parameters())
        return Mapped(Other(type(part).__name__), (*reads, *inside))

    def _known(self, path: str, names: tuple[str, ...]) -> tuple[str | None, ...]:
        full = (f"{path}.{name}" for name in names)
        return tuple(name if self._state.get(name) is not None else None for name in full)


def _functional(node: torch.fx.Node) -> Mapped:
    order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {"training": False, "eps": 1e-5}
    given.update(zip(order, node.args, strict=False))
    given.update(node.kwargs)
    slots = (given.get(name) for name in ("input", "weight", "bias", "running_mean", "running_var"))
    # A flag that is computed while the model runs may be either; the fold needs it to be False.
    op = BatchNorm(float(given["eps"]), training=given["training"] is not False)
    return Mapped(op, tuple(value if isinstance(value, type(node)) else None for value in slots))
