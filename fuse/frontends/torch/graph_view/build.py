"""From an FX graph, exported or traced, to the dataflow view."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.aten import fixed_shape, shape_of
from convbn.fuse.frontends.torch.calls.schema import (
    label,
    only_metadata,
    passes_through,
    shown_by,
    written_by,
)
from convbn.fuse.frontends.torch.calls.tensors import number, to_array, why_not_constant
from convbn.fuse.frontends.torch.graph_view.aliasing import Memory
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.calls import Mapped, Shape
from convbn.fuse.operators.contraction import Contraction
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.conv_transpose import ConvTranspose
from convbn.fuse.operators.evaluation import evaluated
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.registered_conv import RegisteredConv
from convbn.fuse.operators.split import Split
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.op import BIAS, WEIGHT, Other
from convbn.fuse.view.view import View

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["CapturedGraph", "GraphView", "build_view", "innermost", "stack", "written_while_running"]


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A graph, and what is known about it.

    Attributes:
        graph: in running order.
        state: every parameter, buffer and constant tensor by its qualified name.
        names: the graph nodes that stand for one of them.
        mapper: what a node computes.
        refused: names of tensors whose numbers are not the same in every run, and why.
        absent: names of tensors that are in ``state`` on trial: the view shows their slot as empty.
        graph_form: whether the graph itself is edited. Then one reader of a tensor can be given another one
            and nodes can be replaced; a module only takes other parameters.
        pure: whether maps may move in every direction.
        computed: the constant that a node gives, if it computes it from constants alone.
        metadata: whether a node looks at no numbers.
        handed_on: the input that a node hands on as it is, memory and all.
        writes: the tensors whose numbers a node changes.
        shows: the tensor in whose memory a node's result may lie.
        shape: the shape of a node's result.
        paths: one path for every name of a module that has several.
    """

    graph: torch.fx.Graph
    state: Mapping[str, torch.Tensor]
    names: Mapping[torch.fx.Node, str]
    mapper: Callable[[torch.fx.Node], Mapped | None]
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    graph_form: bool = True
    pure: bool = True
    computed: Callable[[torch.fx.Node, Mapping[torch.fx.Node, Value]], Value | None] | None = None
    metadata: Callable[[torch.fx.Node], bool] = only_metadata
    handed_on: Callable[[torch.fx.Node], torch.fx.Node | None] = passes_through
    writes: Callable[[torch.fx.Node], Iterable[torch.fx.Node]] = written_by
    shows: Callable[[torch.fx.Node], torch.fx.Node | None] = shown_by
    shape: Callable[[torch.fx.Node], Shape | None] = shape_of
    paths: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GraphView:
    """A view, and the way back to the graph it shows.

    Attributes:
        view: each node's handle is the graph node.
        values: the value that a graph node stands for.
        on_trial: by node and empty slot, the name of the tensor that would stand there.
    """

    view: View
    values: Mapping[torch.fx.Node, Value]
    on_trial: Mapping[Node, Mapping[int, str]]


def stack(node: torch.fx.Node) -> list[str]:
    """The paths of the modules whose forward a node was called in, from the outermost on."""
    return [str(entry[0]) for entry in node.meta.get("nn_module_stack", {}).values()]


def innermost(node: torch.fx.Node) -> str:
    """The path of the module whose own forward called a node; empty for the model's."""
    last = next(reversed(node.meta.get("nn_module_stack", {}).values()), None)
    return "" if last is None else str(last[0])


def written_while_running(name: str) -> Refusal:
    """Why a tensor that the model writes to is no constant."""
    return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"'{name}' is written to while the model runs")


def build_view(captured: CapturedGraph) -> GraphView:
    """Build the view of a graph."""
    return _ViewBuilder(captured).build()


class _ViewBuilder:
    def __init__(self, captured: CapturedGraph) -> None:
        self._captured = captured
        self._mapped = {node: captured.mapper(node) for node in captured.graph.nodes}
        self._values: dict[torch.fx.Node, Value] = {}
        self._state: dict[int, Value] = {}
        self._on_trial: dict[Node, dict[int, str]] = {}
        self._nodes: list[Node] = []
        self._taken: set[str] = set()
        self._metadata_only: set[torch.fx.Node] = set()
        self._memory = Memory(captured.graph, captured.shows)
        self._ambiguous: set[torch.fx.Node] = set()
        self._own = self._own_names()

    def build(self) -> GraphView:
        for node in self._captured.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._values[node] = self._input(node)
            elif node.op == "output":
                for read in node.all_input_nodes:
                    if read in self._values:
                        self._values[read].observed = "an output of the model"
            elif not self._skipped(node):
                self._call(node)
        for node, value in self._values.items():
            if self._memory.base(node) in self._ambiguous and node not in self._captured.names:
                value.observed = value.observed or _WRITTEN
        for made in self._nodes:
            _settle_axis(made)
        view = View(self._nodes, pure=self._captured.pure, replaceable=self._captured.graph_form)
        return GraphView(view, self._values, self._on_trial)

    def _skipped(self, node: torch.fx.Node) -> bool:
        """Nodes that are no computation of their own; most are another name for a value."""
        checks = bool(node.all_input_nodes) and self._metadata_only.issuperset(node.all_input_nodes)
        if checks or self._captured.metadata(node):
            self._metadata_only.add(node)
            return True
        handed_on = self._captured.handed_on(node)
        if handed_on is not None and handed_on not in self._captured.names:
            self._values[node] = self._values[handed_on]
            return True
        if node.target is operator.getitem and node in self._values:
            return True
        users = [self._mapped[user] for user in node.users]
        return bool(users) and all(user is not None and user.through is node for user in users)

    def _input(self, node: torch.fx.Node) -> Value:
        name = self._captured.names.get(node)
        if name is not None:
            return self._tensor(name)
        return Value(node.name, self._captured.shape(node))

    def _tensor(self, name: str) -> Value:
        """The value of a parameter, one for all its names."""
        tensor = self._captured.state[name]
        value = self._state.get(id(tensor))
        if value is not None:
            return value
        shape = tuple(getattr(tensor, "shape", ()))
        value = Value(name, shape)
        value.not_constant = self._captured.refused.get(name) or why_not_constant(name, tensor)
        if value.not_constant is None:
            value.constant = Constant(shape, lambda: to_array(tensor), cloneable=self._captured.graph_form)
        self._state[id(tensor)] = value
        return value

    def _call(self, node: torch.fx.Node) -> None:
        known = None
        if self._captured.computed is not None:
            constant = self._captured.computed(node, self._values)
            if constant is not None and not self._behind_a_batchnorm(node):
                self._values[node] = constant
                return
            known = None if constant is None else constant.constant
        mapped = self._mapped[node]
        if mapped is None:
            inputs = [self._values.get(read) for read in node.all_input_nodes]
            made = Node(self._name(node), Other(label(node)), list(inputs), [], handle=node)
        else:
            made = Node(self._name(node), mapped.op, [], [], handle=node)
            for slot, read in enumerate(mapped.slots):
                made.inputs.append(self._at(made, slot, read))
        for slot, value in enumerate(made.inputs):
            if value is not None:
                value.readers.append(Reader(made, slot))
        self._outputs(node, made)
        if self._captured.graph_form and isinstance(made.op, BatchNorm) and len(made.outputs) == 1:
            known = evaluated(made.op, made.inputs)
        made.outputs[0].constant = known
        if (
            mapped is not None
            and isinstance(made.op, Linear | Contraction)
            and mapped.names[BIAS:] == (None,)
        ):
            if not self._captured.graph_form:
                made.locks[BIAS] = Refusal(Reason.NO_BIAS, f"{made.label} is called without a bias")
            elif isinstance(made.op, Contraction) or made.outputs[0].rank != 2:
                made.adds = frozenset((BIAS,))
        if (
            mapped is not None
            and isinstance(made.op, RegisteredConv)
            and mapped.slots[BIAS] is None
            and mapped.names[BIAS] is None
        ):
            made.locks[BIAS] = Refusal(Reason.NO_BIAS, f"{made.label} is called without a bias")
        self._write(node, made)
        self._nodes.append(made)

    def _behind_a_batchnorm(self, node: torch.fx.Node) -> bool:
        """Whether a constant is computed from what a BatchNorm over constants gives, which stands in the report."""
        return any(self._values[read].producer is not None for read in node.all_input_nodes)

    def _at(self, made: Node, slot: int, read: torch.fx.Node | str | float | None) -> Value | None:
        if read is None:
            return None
        if isinstance(read, int | float):
            value = Value(f"{made.name}.{slot}", ())
            value.constant = number(read, made.handle.meta.get("val"))
            return value
        name = read if isinstance(read, str) else self._captured.names.get(read)
        if name is not None and name in self._captured.absent:
            self._on_trial.setdefault(made, {})[slot] = name
            return None
        return self._tensor(read) if isinstance(read, str) else self._values.get(read)

    def _outputs(self, node: torch.fx.Node, made: Node) -> None:
        parts: dict[torch.fx.Node, Any] = {
            user: user.args[1] for user in node.users if user.target is operator.getitem
        }
        shapes = self._parts(node, made, parts.values())
        if shapes is None:
            value = Value(node.name, self._captured.shape(node), made)
            self._values[node] = value
            made.outputs.append(value)
            return
        made.outputs.extend(Value(f"{node.name}.{index}", shape, made) for index, shape in enumerate(shapes))
        for user, index in parts.items():
            self._values[user] = made.outputs[index]

    def _parts(self, node: torch.fx.Node, made: Node, asked: Iterable[Any]) -> list[Shape | None] | None:
        """The shapes of a node's several results; None where it has one."""
        value = node.meta.get("val")
        if isinstance(value, tuple | list):
            return [fixed_shape(part) for part in value]
        if not isinstance(made.op, Split) or value is not None:
            return None
        # Of a traced call the pieces are known by who asks for them.
        wanted = sorted({index for index in asked if isinstance(index, int)})
        whole = wanted == list(range(len(wanted))) and len(wanted) == len(node.users)
        if not whole:
            made.op = Other(label(node))
        pieces = self._captured.shape(node)
        return [pieces] * len(wanted) if whole else None

    def _write(self, node: torch.fx.Node, made: Node) -> None:
        """Whoever reads a tensor after ``node`` has written to it reads another value."""
        for written in self._captured.writes(node):
            old = self._values.get(written)
            if old is None or written in self._captured.names:
                continue  # what is written to a parameter is refused by its name
            if self._captured.shows(node) is written and made.outputs:
                new = made.outputs[0]
            else:
                new = Value(f"{written.name}.written", old.shape, made)
                made.outputs.append(new)
            base = self._memory.base(written)
            if any(self._values.get(o) is not old for o in self._memory.others_read_after(written, node)):
                self._ambiguous.add(base)
                old.observed = _WRITTEN
            if base.op in ("placeholder", "get_attr"):
                new.observed = "written into an input of the model"
            self._values.update({other: new for other, value in self._values.items() if value is old})

    def _own_names(self) -> dict[torch.fx.Node, str]:
        """Names for the calls that are all there is to a module: the module's path."""
        names: dict[torch.fx.Node, str] = {}
        calls: dict[str, int] = {}
        paths = self._captured.paths
        for node, mapped in self._mapped.items():
            path = innermost(node)
            path = paths.get(path, path)
            if mapped is None or not isinstance(mapped.op, _NAMED):
                continue
            slots = [key for key in mapped.slots if key is not None and not isinstance(key, int | float)]
            named = [key if isinstance(key, str) else self._captured.names.get(key) for key in slots]
            owners = {self._owner(name, path): name for name in reversed(named) if name is not None}
            if owners and (not path or path not in {paths.get(owner, owner) for owner in owners}):
                # Called in other code than that of the module that holds the tensors.
                apart = (
                    len(owners) == 1 and not self._captured.graph_form and isinstance(mapped.op, _NAMED[1:])
                )
                path = next(owner or name for owner, name in owners.items()) if apart else ""
            if not path:
                continue
            calls[path] = calls.get(path, 0) + 1
            names[node] = path if calls[path] == 1 else f"{path} (call {calls[path]})"
            self._taken.add(names[node])
        return names

    def _owner(self, name: str, path: str) -> str:
        """The module that holds a tensor, which is ``path`` if that is one of those that do."""
        own, state = f"{path}.{name.rpartition('.')[2]}", self._captured.state
        return path if own in state and state[own] is state.get(name) else name.rpartition(".")[0]

    def _name(self, node: torch.fx.Node) -> str:
        own = self._own.get(node)
        if own is not None:
            return own
        mapped = self._mapped[node]
        wanted = "" if mapped is not None and isinstance(mapped.op, _NAMED) else innermost(node)
        name = wanted if wanted and wanted not in self._taken else node.name
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _settle_axis(node: Node) -> None:
    """Channels stand before the spatial axes: first in a convolution of one sample, second in a batch."""
    if not isinstance(node.op, Conv | ConvTranspose):
        return
    weight, rank = node.input(WEIGHT), node.outputs[0].rank
    spatial = None if weight is None or weight.rank is None else weight.rank - 2
    axis = None if rank is None or spatial is None else rank - 1 - spatial
    node.op = replace(node.op, channel_axis=axis if axis in (0, 1) else None)


_NAMED = (BatchNorm, Conv, ConvTranspose, Linear, RegisteredConv)
"""Operators that are all there is to a module."""

_WRITTEN = "written to in place through another view of its memory"
