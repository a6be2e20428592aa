"""An onnx-graphsurgeon graph as a dataflow view, bodies of control flow included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError
from convbn.fuse.frontends.onnx.attributes import odd_attribute
from convbn.fuse.frontends.onnx.constants import CHAIN, computed_constant, stored_constant
from convbn.fuse.frontends.onnx.operators import is_batchnorm, is_standard, operator_of
from convbn.fuse.frontends.onnx.outside import Outside
from convbn.fuse.operators.evaluation import evaluated
from convbn.fuse.plan.plan import Kept
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Reader, Value
from convbn.fuse.view.op import BIAS, Other
from convbn.fuse.view.view import View

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["Place", "Reading", "bodies", "read_view"]

Shapes = Mapping[str, tuple[int | None, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a view's node stands in the model: the handle of this frontend."""

    graph: gs.Graph
    node: gs.Node


@dataclass(frozen=True, slots=True)
class Reading:
    """A view, and the BatchNorms that have no place in it."""

    view: View
    nodes: int
    unreachable: list[Kept] = field(default_factory=list)


def bodies(node: gs.Node) -> Iterator[tuple[str, gs.Graph]]:
    """The graphs that a node carries as attributes, by attribute name."""
    import onnx_graphsurgeon as gs

    return ((name, value) for name, value in node.attrs.items() if isinstance(value, gs.Graph))


def scopes(graph: gs.Graph) -> Iterator[tuple[str, gs.Graph]]:
    """The main graph and every body below it, outer ones first; iterative, for any depth of nesting."""
    waiting = [("", graph)]
    while waiting:
        scope, current = waiting.pop(0)
        yield scope, current
        for node in current.nodes:
            waiting.extend((f"{scope}/{node.name or node.op}.{name}", body) for name, body in bodies(node))


def read_view(
    graph: gs.Graph,
    *,
    overridable: frozenset[str] = frozenset(),
    shapes: Shapes | None = None,
    outside: Outside | None = None,
) -> Reading:
    """The dataflow of ``graph``.

    Args:
        graph: an imported graph; it is not changed, and the view's handles point into it.
        overridable: initializers that a caller of the model may feed, so they are not constants.
        shapes: shapes by tensor name, for tensors the graph gives none for.
        outside: where the weights are, if not in the graph's tensors.
    """
    reader = _GraphReader(overridable, shapes or {}, outside)
    for scope, current in scopes(graph):
        reader.read(scope, current)
    for function in graph.functions:
        for node in function.nodes:
            reader.count += 1
            if is_batchnorm(node):
                reader.unreachable.append(
                    Kept(
                        reader.unique(node),
                        Reason.LOCAL_FUNCTION,
                        f"it stands in the model-local function {function.name}, which was not written out",
                    )
                )
    return Reading(View(reader.nodes, pure=True), reader.count, reader.unreachable)


class _GraphReader:
    def __init__(self, overridable: frozenset[str], shapes: Shapes, outside: Outside | None) -> None:
        self._outside = outside
        self.overridable = overridable
        self.shapes = shapes
        self.nodes: list[Node] = []
        self.unreachable: list[Kept] = []
        self.count = 0
        self._values: dict[int, Value] = {}
        self._names: dict[str, int] = {}

    def read(self, scope: str, graph: gs.Graph) -> None:
        opset = graph.opset or 0
        for tensor in graph.outputs:
            self.value(tensor).observed = f"an output of the {'model' if not scope else 'body ' + scope}"
        for node in graph.nodes:
            self.count += 1
            self._node(scope, graph, node, opset)

    def unique(self, node: gs.Node) -> str:
        """A name for reports: the node's own, else by what it produces; numbered where it repeats."""
        name = node.name or f"{node.op}({node.outputs[0].name if node.outputs else ''})"
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name} ({count})"

    def value(self, tensor: Any) -> Value:
        """The view's value for a graphsurgeon tensor."""
        known = self._values.get(id(tensor))
        if known is not None:
            return known
        import onnx_graphsurgeon as gs

        value = self._values[id(tensor)] = Value(tensor.name)
        if isinstance(tensor, gs.Constant):
            constant = stored_constant(tensor, self._outside)
            value.shape = constant.shape
            if tensor.name in self.overridable:
                value.not_constant = Refusal(
                    Reason.OVERRIDABLE,
                    f"'{tensor.name}' is also a graph input: a caller may feed another value",
                )
            else:
                value.constant = constant
        elif tensor.shape is not None:
            value.shape = tuple(n if isinstance(n, int) and n >= 0 else None for n in tensor.shape)
        else:
            value.shape = self.shapes.get(tensor.name)
        return value

    def _node(self, scope: str, graph: gs.Graph, node: gs.Node, opset: int) -> None:
        name = self.unique(node)
        inputs = [self.value(tensor) if tensor.name else None for tensor in node.inputs]
        outputs = [self.value(tensor) for tensor in node.outputs if tensor.name]
        if node.op in ("Gemm", "MatMul") and outputs and outputs[0].shape is None:
            outputs[0].shape = _linear_shape(node, inputs)
        operator = operator_of(node, opset, inputs, outputs)
        if isinstance(operator, Refusal):
            self.unreachable.append(Kept(name, operator.reason, operator.detail))
            operator = Other(node.op)
        entry = Node(name, operator, list(inputs), outputs, scope, handle=Place(graph, node))
        if node.op == "MatMul" and (not outputs or outputs[0].rank != 2):
            entry.locks[BIAS] = Refusal(
                Reason.NO_BIAS, f"{entry.label} has no bias, and no rank 2 to become a Gemm"
            )
        for slot, value in enumerate(inputs):
            if value is not None:
                value.readers.append(Reader(entry, slot))
        for value in outputs:
            if value.producer is not None or value.constant is not None:
                raise BadInputError(f"'{value.name}' is given by more than one node or initializer")
            value.producer = entry
        if outputs and is_standard(node) and odd_attribute(node.op, opset, node.attrs) is None:
            constant = computed_constant(node, inputs) if node.op in CHAIN else evaluated(operator, inputs)
            if constant is not None:
                outputs[0].constant, outputs[0].shape = constant, constant.shape
        self.nodes.append(entry)


def _linear_shape(node: gs.Node, inputs: list[Value | None]) -> tuple[int | None, ...] | None:
    """The rank of a product, where the graph does not state it."""
    if node.op == "Gemm":
        return (None, None)
    data, weight = [*inputs, None, None][:2]
    if data is None or weight is None or data.rank is None or weight.rank != 2:
        return None
    return (None,) * data.rank
