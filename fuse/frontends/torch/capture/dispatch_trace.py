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
from convbn.fuse.operators.calls import Mapped
from convbn.fuse.operators.slice import Slice
from convbn.fuse.operators.split import Split
from convbn.fuse.refusal import Reason, Refusal

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["DISPATCH_TRACED", "cloned_inputs", "dispatch_graph", "record"]

DISPATCH_TRACED = (
    "Recorded from one run on the example inputs, since neither torch.export nor symbolic tracing could take "
    "the forward ({cause}): the fold is exact for every input that takes the same way through the code; "
    "nothing is known of the ways that this run did not take."
)


_TAKEN = "numbers_taken"
_CONVERSIONS = ("numpy", "tolist", "__array__", "__dlpack__")
_NUMBERS = ("item", "__int__", "__float__", "__index__", "__complex__")


def cloned_inputs(example_inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs that a run may write to."""
    import torch
    from torch.utils import _pytree as pytree

    copied: tuple[Any, ...] = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), example_inputs)
    return copied


def _without_conversions(taken: list[str]) -> AbstractContextManager[Any]:
    """A mode in which no tensor gives its numbers to code that a record of PyTorch's operators would not show.

    Args:
        taken: is told of each number that a tensor gives to Python, which may come back as a constant. What is true or
            false decides on the way through the code.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class WithoutConversions(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = str(getattr(func, "__name__", ""))
            if name in _CONVERSIONS:
                raise RuntimeError(f"Tensor.{name} hands numbers to code outside PyTorch")
            if name in _NUMBERS and args[0].dtype != torch.bool:
                taken.append(name)
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
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx import traceback
    from torch.fx.experimental.proxy_tensor import make_fx

    entered: list[tuple[str, type]] = []
    taken: list[str] = []

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
        # With one mode for tensors without numbers, of which the tracer would make one for each node.
        context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
        with traceback.preserve_node_meta(), _without_conversions(taken), tracing(context):
            graph: torch.fx.GraphModule = trace(*cloned_inputs(example_inputs))
            graph.meta[_TAKEN] = bool(taken)
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
    mapper = map_aten
    if recorded.meta[_TAKEN]:
        mapper = _without_numbers
        refused |= {name: _may_be_data(name) for name in names.values() if name not in instrumented.tensors}
    return CapturedGraph(
        graph, state, names, mapper, refused=refused, computed=reshaped_in, **instrumented.facts
    )


def _without_numbers(node: torch.fx.Node) -> Mapped | None:
    """What a node computes, unless a number in it may be one that a tensor gave in this run."""
    mapped = map_aten(node)
    if mapped is None or isinstance(mapped.op, Slice | Split):
        return None
    return None if any(isinstance(slot, int | float) for slot in mapped.slots) else mapped


def _may_be_data(name: str) -> Refusal:
    return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"'{name}' may hold numbers that the run took from its data")
