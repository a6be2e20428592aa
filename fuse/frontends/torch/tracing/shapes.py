"""Shapes in a graph that was traced without inputs: what the layers' own code settles.

A BatchNorm2d refuses data that is not of rank 4, so its input has that rank; a convolution says how many
channels it gives. From there ranks and channels spread over what keeps them, in both directions; sizes of
images are only known where a layer fixes them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.aten import GraphTensors, type_name
from convbn.fuse.frontends.torch.modules.layers import layer_of, plain_forward
from convbn.fuse.frontends.torch.tracing.aten_names import call_of_module, named_call
from convbn.fuse.operators.calls import AtenCall, Shape
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.normalization import Normalization
from convbn.fuse.operators.registry import aten_rows

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["TracedShapes", "is_pointwise", "is_pointwise_module"]


class TracedShapes(GraphTensors):
    """Shapes and calls of one graph's nodes.

    Args:
        parts: every module of what was traced, by its paths.
        graph: in running order.
        state: the module's tensors by name.
        names: the nodes that stand for one of them.
    """

    def __init__(
        self,
        parts: Mapping[str, torch.nn.Module],
        graph: torch.fx.Graph,
        state: Mapping[str, Any],
        names: Mapping[torch.fx.Node, str],
    ) -> None:
        self._parts = parts
        self._types = {node: type_name(getattr(state[name], "dtype", None)) for node, name in names.items()}
        self._calls = {node: self._call(node) for node in graph.nodes}
        called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        # Layers and BatchNorms; one with a forward of its own may give anything.
        known = [parts[path] for path in called if plain_forward(parts[path])]
        self._layers = {id(part): layer_of(part) for part in known}
        self._ranks = self._proven(graph)
        self._shapes: dict[torch.fx.Node, Shape] = {
            node: tuple(state[name].shape) for node, name in names.items() if hasattr(state[name], "shape")
        }
        nodes = list(graph.nodes)
        self._forwards(nodes)
        if self._backwards(nodes):
            self._forwards(nodes)

    def shape(self, value: Any) -> Shape | None:
        """The shape of a node, or of each of the equal pieces it splits its data into."""
        return self._shapes.get(value)

    def call(self, value: torch.fx.Node) -> AtenCall | None:
        """The call that a node is, by its ATen name."""
        return self._calls[value]

    def dtype(self, value: Any) -> str | None:
        """Of a parameter, and of code that asks one for its type."""
        if value.target is getattr and value.args[1:2] == ("dtype",):
            value = value.args[0]
        return self._types.get(value)

    def _part(self, node: torch.fx.Node) -> torch.nn.Module | None:
        return self._parts[str(node.target)] if node.op == "call_module" else None

    def _call(self, node: torch.fx.Node) -> AtenCall | None:
        part = self._part(node)
        if part is not None:
            reads = node.all_input_nodes
            alone = node.args == tuple(reads) and len(reads) == 1
            return call_of_module(part, reads[0], self) if alone else None
        return named_call(node, self) if node.op in ("call_function", "call_method") else None

    def _forwards(self, nodes: Sequence[torch.fx.Node]) -> None:
        for node in nodes:
            if node in self._shapes and None not in self._shapes[node]:
                continue
            shape = self._after(node)
            rank = self._ranks.get(node)
            if shape is None and rank is not None:
                shape = self._channels((None,) * rank, node)
            if shape is not None:
                self._shapes[node] = shape

    def _backwards(self, nodes: Sequence[torch.fx.Node]) -> bool:
        """Give ranks to what goes into operators that keep them; whether there was any."""
        found = False
        for node in reversed(nodes):
            rank = len(self._shapes[node]) if node in self._shapes else self._ranks.get(node)
            if rank is None or not self._keeps_rank(node):
                continue
            call = self._calls[node]
            joined = call is not None and "tensors" in call.given
            for read in node.all_input_nodes if joined else node.all_input_nodes[:1]:
                if read not in self._shapes and read not in self._ranks:
                    self._ranks[read] = rank
                    found = True
        return found

    def _keeps_rank(self, node: torch.fx.Node) -> bool:
        part, call = self._part(node), self._calls[node]
        if id(part) in self._layers or (part is not None and is_pointwise_module(part)) or is_pointwise(node):
            return True
        return call is not None and any(row.keeps_rank for row in aten_rows(call.name))

    def _after(self, node: torch.fx.Node) -> Shape | None:
        reads = node.all_input_nodes
        data = self._shapes.get(reads[0]) if reads else None
        if node.target is operator.getitem and reads and self._splits(reads[0]):
            return data
        part, call = self._part(node), self._calls[node]
        if id(part) in self._layers:
            return None if data is None else self._channels(data, node)
        if (part is not None and is_pointwise_module(part)) or is_pointwise(node):
            return data
        rows = () if call is None else aten_rows(call.name)
        return next((row.shape(call) for row in rows if call is not None and row.shape is not None), None)

    def _splits(self, node: torch.fx.Node) -> bool:
        call = self._calls[node]
        return call is not None and any(row.several for row in aten_rows(call.name))

    def _channels(self, data: Shape, node: torch.fx.Node) -> Shape | None:
        """What a layer makes of data of this shape; it keeps the batch and nobody knows its sides."""
        part: Any = self._part(node)
        if id(part) not in self._layers:
            return data
        layer = self._layers[id(part)]
        if layer is None:  # a BatchNorm
            mean = part.running_mean
            return data if mean is None or len(data) < 2 else (data[0], len(mean), *data[2:])
        if isinstance(layer, Normalization):
            return data
        weight: Any = part.weight
        if isinstance(layer, Linear):
            return (*data[:-1], int(weight.shape[0]))
        outputs = int(part.out_channels)
        axis = len(data) - (weight.ndim - 1)
        if axis not in (0, 1):
            return None
        return (*data[:axis], outputs, *(None,) * (weight.ndim - 2))

    def _proven(self, graph: torch.fx.Graph) -> dict[torch.fx.Node, int]:
        """Ranks that a run would refuse to differ from: by a BatchNorm's own check, or by an assertion."""
        import torch
        from torch import nn

        ranks: dict[torch.fx.Node, int] = {}
        for node in graph.nodes:
            part = self._part(node)
            if part is not None:
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


_VIEWS = ("alias", "detach")
_POINTWISE = (
    *("sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "relu6", "elu", "mish"),
    *("softmax", "clamp", "exp", "abs", "neg", "batch_norm", "layer_norm", "group_norm"),
)


def is_pointwise(node: torch.fx.Node, *, views: bool = True) -> bool:
    """Whether a call gives a tensor of its first operand's shape; without ``views``, and in memory of its own."""
    target = node.target
    name = target if isinstance(target, str) else str(getattr(target, "__name__", "")).partition(".")[0]
    known = node.op == "call_method" or str(getattr(target, "__module__", "torch")).startswith("torch")
    names = (*_POINTWISE, *_VIEWS) if views else _POINTWISE
    return node.op in ("call_function", "call_method") and known and name.removesuffix("_") in names


def is_pointwise_module(part: torch.nn.Module, *, views: bool = True) -> bool:
    """The same of a module of torch.nn."""
    kind = type(part)
    home = kind.__module__.removeprefix("torch.nn.modules.")
    same = home in ("activation", "normalization") or (
        views and (home == "dropout" or kind.__name__ == "Identity")
    )
    return same and kind.__name__ not in ("GLU", "MultiheadAttention") and "forward" not in vars(part)
