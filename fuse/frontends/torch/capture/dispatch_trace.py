"""The operators that one run of a module dispatches, recorded as a graph, where its code cannot be captured."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from convbn.common.text import named_line
from convbn.errors import BadInputError
from convbn.fuse.frontends.torch.calls.aten import map_aten, written_nodes
from convbn.fuse.frontends.torch.graph_view.build import CapturedGraph, written_while_running
from convbn.fuse.frontends.torch.graph_view.constants import reshaped_in
from convbn.fuse.frontends.torch.modules.instrument import Instrumented
from convbn.fuse.frontends.torch.modules.keywords import called

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["DISPATCH_TRACED", "cloned_inputs", "dispatch_graph", "record"]

DISPATCH_TRACED = (
    "Recorded from one run on the example inputs, since neither torch.export nor symbolic tracing could take "
    "the forward ({cause}): the fold is exact for every input that takes the same way through the code; "
    "nothing is known of the ways that this run did not take."
)


_CONVERSIONS = ("numpy", "tolist", "__array__", "__dlpack__")


def cloned_inputs(example_inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs that a run may write to."""
    import torch
    from torch.utils import _pytree as pytree

    copied: tuple[Any, ...] = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), example_inputs)
    return copied


def _without_conversions() -> AbstractContextManager[Any]:
    """A mode in which no tensor gives its numbers to code that a record of PyTorch's operators would not show."""
    from torch.overrides import TorchFunctionMode

    class WithoutConversions(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = str(getattr(func, "__name__", ""))
            if name in _CONVERSIONS:
                raise RuntimeError(f"Tensor.{name} hands numbers to code outside PyTorch")
            return func(*args, **(kwargs or {}))

    return WithoutConversions()


def record(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> torch.fx.GraphModule:
    """Run a module once and give the ATen calls it made.

    Args:
        module: a instrumented copy with buffers of its own.
        example_inputs: positional arguments of its forward.

    Raises:
        BadInputError: the run fails.
    """
    from torch.fx import traceback
    from torch.fx.experimental.proxy_tensor import make_fx

    entered: list[tuple[str, type]] = []

    def remember() -> None:
        places = OrderedDict((path, (path, kind)) for path, kind in entered)
        traceback.current_meta["nn_module_stack"] = places

    def enter(path: str) -> Any:
        def hook(part: torch.nn.Module, _: Any) -> None:
            entered.append((path, type(part)))
            remember()

        return hook

    def leave(*_: Any) -> None:
        entered.pop()
        remember()

    for path, part in module.named_modules():
        part.register_forward_pre_hook(enter(path), prepend=True)
        part.register_forward_hook(leave, always_call=True)
    trace = make_fx(
        lambda *given: called(module, given),
        tracing_mode="real",
        pre_dispatch=True,
        _error_on_data_dependent_ops=False,
    )
    try:
        with traceback.preserve_node_meta(), _without_conversions():
            graph: torch.fx.GraphModule = trace(*cloned_inputs(example_inputs))
            return graph
    except Exception as error:  # whatever the user's forward raises
        raise BadInputError(
            f"its forward could not be captured, traced or recorded ({named_line(error)})",
            source=type(module).__name__,
            hint="run it on the example inputs first, or export it yourself and fold the program",
        ) from error


def dispatch_graph(instrumented: Instrumented, recorded: torch.fx.GraphModule) -> CapturedGraph:
    """A recorded graph and what is known about it."""
    graph = recorded.graph
    state: dict[str, Any] = dict(instrumented.tensors)
    first = instrumented.tensor_names
    names: dict[torch.fx.Node, str] = {}
    for node in graph.find_nodes(op="get_attr"):
        held = getattr(recorded, str(node.target), None)
        names[node] = first.get(id(held), f"{node.target} of the recorded run")
        state.setdefault(names[node], held)  # a tensor of the code's own
    written = {names[node] for node in written_nodes(graph) if node in names}
    refused = {name: written_while_running(name) for name in written}
    return CapturedGraph(
        graph, state, names, map_aten, refused=refused, computed=reshaped_in, **instrumented.facts
    )
