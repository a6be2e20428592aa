"""Constants that a graph computes from its parameters: a transposed weight, the scale of a frozen BatchNorm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.schema import operator_name, schema_of
from convbn.fuse.frontends.torch.calls.tensors import to_array
from convbn.fuse.view.dataflow import Constant, Value

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["computed_in", "evaluate", "reshaped_in"]

_RESHAPING = (
    "view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "flatten",
    "unflatten",
    "_unsafe_view",
    "alias",
    "detach",
)

Computed = Callable[["torch.fx.Node", Mapping["torch.fx.Node", Value]], Value | None]


def computed_in(state: Mapping[torch.fx.Node, torch.Tensor]) -> Computed:
    """What tells the constants that an exported graph computes.

    Args:
        state: the tensor behind each node that stands for one.
    """

    def computed(node: torch.fx.Node, values: Mapping[torch.fx.Node, Value]) -> Value | None:
        reads = node.all_input_nodes
        if not reads or not _repeatable(node):
            return None
        if any(read not in values or values[read].constant is None for read in reads):
            return None
        like: Any = node.meta.get("val")
        shape = getattr(like, "shape", None)
        if shape is None or not all(isinstance(size, int) for size in shape) or not like.is_floating_point():
            return None
        return Value(
            node.name, tuple(shape), constant=Constant(shape, lambda: to_array(evaluate(node, state)))
        )

    return computed


def reshaped_in(node: torch.fx.Node, values: Mapping[torch.fx.Node, Value]) -> Value | None:
    """The parameter of a module that its forward only reshapes before it uses it."""
    reads = node.all_input_nodes
    name = operator_name(node).removeprefix("aten::")
    if len(reads) != 1 or name not in _RESHAPING or reads[0] not in values:
        return None
    stored, shape = values[reads[0]], getattr(node.meta.get("val"), "shape", None)
    known = stored.constant
    if known is None or shape is None or not all(isinstance(size, int) for size in shape):
        return None
    # Under the parameter's own name: that is where a new constant goes.
    new = Value(stored.name, tuple(shape))
    new.constant = Constant(
        shape, lambda: known.array().reshape(tuple(shape)), cloneable=False, dtype=known.dtype
    )
    return new


def _repeatable(node: torch.fx.Node) -> bool:
    """Whether a call gives the same numbers from the same tensors every time, and does nothing else."""
    import torch

    schema = schema_of(node)
    if schema is None or schema.is_mutable or not schema.name.startswith("aten::"):
        return False
    if "batch_norm" in schema.name:
        return False  # it stands in the report, whatever it normalises
    return torch.Tag.nondeterministic_seeded not in node.target.tags  # type: ignore[union-attr]


def evaluate(node: torch.fx.Node, state: Mapping[torch.fx.Node, torch.Tensor]) -> torch.Tensor:
    """The tensor that a node computes from the graph's state; iterative, for chains of any length."""
    import torch
    import torch.fx

    known: dict[torch.fx.Node, Any] = {}
    waiting = [node]
    with torch.no_grad():
        while waiting:
            current = waiting[-1]
            if current in state:
                known[current] = state[current]
            missing = [] if current in known else [r for r in current.all_input_nodes if r not in known]
            if missing:
                waiting.extend(missing)
                continue
            waiting.pop()
            if current not in known:
                args, kwargs = torch.fx.map_arg((current.args, current.kwargs), known.__getitem__)
                known[current] = current.target(*args, **kwargs)  # type: ignore[operator]
    result: torch.Tensor = known[node]
    return result
