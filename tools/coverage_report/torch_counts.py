"""Forward passes that count the BatchNorms in them, and BatchNorms that stand in a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coverage_report.graphs import relative_error
from coverage_report.trained import batchnorms, first_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = ["Pass", "batchnorm_nodes", "error_between", "passes", "tried"]


@dataclass
class Pass:
    """What forward passes over some inputs gave.

    Attributes:
        outputs: tensors by input.
        calls: of a batch_norm operator, in the pass over the first input.
        modules: BatchNorm modules that were called in it, each once.
        broken: why there is nothing to compare with, or None.
    """

    outputs: list[list[np.ndarray[Any, Any]]] = field(default_factory=list)
    calls: int | None = None
    modules: int | None = None
    broken: str | None = None


def passes(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Pass:
    """Run a module on each input, each alone."""
    import numpy as np
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += "batch_norm" in str(func)
            return func(*args, **(kwargs or {}))

    done = Pass()
    called: set[str] = set()

    def noting(name: str) -> Callable[..., None]:
        return lambda part, given: called.add(name)

    hooks = [part.register_forward_pre_hook(noting(name)) for name, part in batchnorms(model)]
    try:
        for values in inputs:
            with torch.no_grad(), Counting() as counting:
                outputs = model(values)
            if done.calls is None:
                done.calls, done.modules = counting.calls, len(called)
            done.outputs.append([leaf.numpy() for leaf in tree_leaves(outputs) if torch.is_tensor(leaf)])
    finally:
        for hook in hooks:
            hook.remove()
    if not all(np.isfinite(tensor).all() for given in done.outputs for tensor in given):
        done.broken = "its outputs hold Inf or NaN"
    return done


def tried(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Pass:
    """The same for a module that a tool made: where it raises, that is what the pass says."""
    try:
        return passes(model, inputs)
    except Exception as error:  # whatever a broken module raises
        return Pass(broken=first_line(error))


def batchnorm_nodes(module: torch.fx.GraphModule) -> int:
    """Nodes that call a batch_norm operator in a graph and in the graphs inside it."""
    import torch

    graphs = [part.graph for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    return sum(
        node.op == "call_function" and "batch_norm" in str(node.target)
        for graph in graphs
        for node in graph.nodes
    )


def error_between(expected: Pass, actual: Pass) -> float | None:
    """The largest relative error over the inputs; None where outputs are missing or do not pair."""
    if expected.broken or actual.broken:
        return None
    errors = [relative_error(e, a) for e, a in zip(expected.outputs, actual.outputs, strict=True)]
    known = [error for error in errors if error is not None]
    return max(known) if len(known) == len(errors) else None
