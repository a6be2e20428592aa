"""The nodes of a traced graph in the words of the dataflow view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.aten import read
from convbn.fuse.frontends.torch.modules.instrument import is_batchnorm_like
from convbn.fuse.frontends.torch.modules.layers import batchnorm_of, layer_of
from convbn.fuse.frontends.torch.tracing.shapes import TracedShapes
from convbn.fuse.operators.calls import AtenCall, Mapped
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
            return read(AtenCall("batch_norm", _functional(node), self._shapes))
        call = self._shapes.call(node)
        return None if call is None else read(call)

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
            call = self._shapes.call(node)
            found = None if call is None else read(call)
            if found is not None:
                return found
        # A module that is not looked into reads all its parameters.
        inside = (f"{path}.{name}" for name, _ in part.named_parameters())
        return Mapped(Other(type(part).__name__), (*reads, *inside))

    def _known(self, path: str, names: tuple[str, ...]) -> tuple[str | None, ...]:
        full = (f"{path}.{name}" for name in names)
        return tuple(name if self._state.get(name) is not None else None for name in full)


def _functional(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments of ``torch.nn.functional.batch_norm``, which stand in an order of their own."""
    order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {"training": False, "eps": 1e-5}
    given.update(zip(order, node.args, strict=False))
    given.update(node.kwargs)
    return given
