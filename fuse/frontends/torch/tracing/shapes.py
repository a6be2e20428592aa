"""Shapes in a graph that was traced without inputs: what the layers' own code settles.

A BatchNorm2d refuses data that is not of rank 4, so its input has that rank; a convolution says how many
channels it gives. From there ranks and channels spread over what keeps them, in both directions; sizes of
images are only known where a layer fixes them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.call import Shape
from convbn.fuse.frontends.torch.modules.layers import layer_of, plain_forward
from convbn.fuse.frontends.torch.tracing.aten_names import Named, call_of_module, named_call
from convbn.fuse.operators.linear import Linear

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["TracedShapes"]


class TracedShapes:
    """Shapes of one graph's nodes.

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
        self._named = {node: self._name(node) for node in graph.nodes}
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

    def of(self, node: object) -> Shape | None:
        """The shape of a node, or of each of the equal pieces it splits its data into."""
        return self._shapes.get(node)  # type: ignore[call-overload, no-any-return]

    def _part(self, node: torch.fx.Node) -> torch.nn.Module | None:
        return self._parts[str(node.target)] if node.op == "call_module" else None

    def _name(self, node: torch.fx.Node) -> Named | None:
        part = self._part(node)
        if part is not None:
            reads = node.all_input_nodes
            return call_of_module(part, reads[0]) if node.args == tuple(reads) and len(reads) == 1 else None
        return named_call(node) if node.op in ("call_function", "call_method") else None

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
            named = self._named[node]
            joined = named is not None and named[0] == "cat"
            for read in node.all_input_nodes if joined else node.all_input_nodes[:1]:
                if read not in self._shapes and read not in self._ranks:
                    self._ranks[read] = rank
                    found = True
        return found

    def _keeps_rank(self, node: torch.fx.Node) -> bool:
        part, named = self._part(node), self._named[node]
        if id(part) in self._layers:
            return True
        if (part is not None and _pointwise(part)) or _is_pointwise(node):
            return True
        return named is not None and (
            named[0] in (*_SAME, "cat") or "pool" in named[0] or named[0].startswith("upsample")
        )

    def _after(self, node: torch.fx.Node) -> Shape | None:
        reads = node.all_input_nodes
        data = self._shapes.get(reads[0]) if reads else None
        if node.target is operator.getitem and reads and self._splits(reads[0]):
            return data
        part, named = self._part(node), self._named[node]
        if id(part) in self._layers:
            return None if data is None else self._channels(data, node)
        if (part is not None and _pointwise(part)) or _is_pointwise(node):
            return data
        return None if named is None else self._called(named)

    def _splits(self, node: torch.fx.Node) -> bool:
        named = self._named[node]
        return named is not None and named[0] in ("split", "chunk")

    def _channels(self, data: Shape, node: torch.fx.Node) -> Shape | None:
        """What a layer makes of data of this shape; it keeps the batch and nobody knows its sides."""
        part: Any = self._part(node)
        if id(part) not in self._layers:
            return data
        layer = self._layers[id(part)]
        if layer is None:  # a BatchNorm
            mean = part.running_mean
            return data if mean is None or len(data) < 2 else (data[0], len(mean), *data[2:])
        weight: Any = part.weight
        if isinstance(layer, Linear):
            return (*data[:-1], int(weight.shape[0]))
        outputs = int(part.out_channels)
        axis = len(data) - (weight.ndim - 1)
        if axis not in (0, 1):
            return None
        return (*data[:axis], outputs, *(None,) * (weight.ndim - 2))

    def _called(self, named: Named) -> Shape | None:
        name, given = named
        if name == "cat":
            return self._joined(given)
        data = given.get("self")
        shape = self._shapes.get(data) if data is not None else None
        if name in ("add", "sub", "mul", "div"):
            return self._broadcast([given.get("self"), given.get("other")])
        if shape is None:
            return None
        rank = len(shape)
        if name in _SAME:
            return tuple(shape)
        if "pool" in name and int(name[-2]) != rank - 2:
            return None  # of one sample; its second axis is not the channels
        if name.startswith("adaptive"):
            size = given.get("output_size")
            sizes = tuple(size) if isinstance(size, list | tuple) else (size,) * (rank - 2)
            return (*shape[:2], *(n if isinstance(n, int) else None for n in sizes))
        if "pool" in name or name.startswith("upsample"):
            return (*shape[:2], *(None,) * (rank - 2))
        return _rearranged(name, given, shape)

    def _joined(self, given: Mapping[str, Any]) -> Shape | None:
        tensors, axis = given.get("tensors"), given.get("dim", 0)
        if not isinstance(tensors, list | tuple) or not isinstance(axis, int):
            return None
        shapes = [self._shapes.get(tensor) for tensor in tensors]
        known = [shape for shape in shapes if shape is not None]
        if len(known) != len(shapes) or len({len(shape) for shape in known}) != 1:
            return None
        axis %= len(known[0])
        sizes = [shape[axis] for shape in known]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        merged = [next((s[i] for s in known if s[i] is not None), None) for i in range(len(known[0]))]
        merged[axis] = total
        return tuple(merged)

    def _broadcast(self, operands: Sequence[Any]) -> Shape | None:
        shapes = [() if isinstance(o, int | float) else self._shapes.get(o) for o in operands]
        if any(shape is None for shape in shapes):
            return None
        known = [shape for shape in shapes if shape is not None]
        rank = max(len(shape) for shape in known)
        full = [(1,) * (rank - len(shape)) + shape for shape in known]
        sizes: list[int | None] = []
        for axis in range(rank):
            present = [shape[axis] for shape in full]
            larger = {size for size in present if size is not None and size > 1}
            # An unknown size may be 1, and then the other operand's is the result's, whatever it is.
            sizes.append(larger.pop() if larger else None if None in present else 1)
        return tuple(sizes)

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


_SAME = ("relu", "leaky_relu", "prelu", "contiguous", "clone", "dropout")
_POINTWISE = (
    *("sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "relu6", "elu", "mish"),
    *("softmax", "clamp", "exp", "abs", "neg", "alias", "detach", "batch_norm", "layer_norm", "group_norm"),
)


def _is_pointwise(node: torch.fx.Node) -> bool:
    """Whether a call gives a tensor of its first operand's shape."""
    target = node.target
    name = target if isinstance(target, str) else str(getattr(target, "__name__", "")).partition(".")[0]
    known = node.op == "call_method" or str(getattr(target, "__module__", "torch")).startswith("torch")
    return node.op in ("call_function", "call_method") and known and name.removesuffix("_") in _POINTWISE


def _pointwise(part: torch.nn.Module) -> bool:
    """Whether a module of torch.nn gives a tensor of its input's shape."""
    kind = type(part)
    homes = ("activation", "dropout", "normalization")
    home = kind.__module__.removeprefix("torch.nn.modules.")
    same = home in homes or kind.__name__ == "Identity"
    return same and kind.__name__ not in ("GLU", "MultiheadAttention") and "forward" not in vars(part)


def _rearranged(name: str, given: Mapping[str, Any], shape: Shape) -> Shape | None:
    """The shape behind an operator that moves elements, where its numbers are in the code."""
    rank = len(shape)
    if rank == 0:
        return None
    first = given.get("dim", given.get("dim0", given.get("start_dim", 0)))
    if name in ("mean", "amax"):
        axes = first if isinstance(first, list | tuple) else [first]
        if "dim" not in given or not all(isinstance(axis, int) for axis in axes):
            return None
        gone = {axis % rank for axis in axes}
        if given.get("keepdim", False):
            return tuple(1 if i in gone else size for i, size in enumerate(shape))
        return tuple(size for i, size in enumerate(shape) if i not in gone)
    if name == "permute":
        order = given.get("dims")
        fits = isinstance(order, list | tuple) and all(isinstance(axis, int) for axis in order)
        return tuple(shape[axis] for axis in order) if fits and order and len(order) == rank else None
    if not isinstance(first, int):
        return None
    first %= rank
    if name == "narrow":
        length = given.get("length")
        return (*shape[:first], length if isinstance(length, int) else None, *shape[first + 1 :])
    if name == "transpose":
        second = given.get("dim1")
        if not isinstance(second, int):
            return None
        swapped = list(shape)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        return tuple(swapped)
    if name == "flatten":
        last = given.get("end_dim", -1)
        if not isinstance(last, int):
            return None
        last %= rank
        sizes = shape[first : last + 1]
        total: int | None = 1
        for size in sizes:
            total = None if total is None or size is None else total * size
        return (*shape[:first], total, *shape[last + 1 :])
    if name == "unsqueeze":
        place = given.get("dim", 0)
        place = place if place >= 0 else place + rank + 1
        return (*shape[:place], 1, *shape[place:])
    if name in ("split", "chunk"):
        pieces, size = given.get("chunks"), shape[first]
        piece = given.get("split_size") if name == "split" else None
        if name == "chunk" and isinstance(pieces, int) and size is not None and size % pieces == 0:
            piece = size // pieces
        even = isinstance(piece, int) and size is not None and size % piece == 0
        return (*shape[:first], piece, *shape[first + 1 :]) if even else None
    return None
