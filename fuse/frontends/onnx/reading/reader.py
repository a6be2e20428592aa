"""A ModelProto as a dataflow view, bodies of control flow included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from convbn.errors import BadInputError
from convbn.fuse.frontends.onnx.model.attributes import attributes_of, is_standard
from convbn.fuse.frontends.onnx.model.dimensions import Dimensions, dimensions
from convbn.fuse.frontends.onnx.model.graphs import named_bodies
from convbn.fuse.frontends.onnx.model.tensors import Read, Stored, dtype_of
from convbn.fuse.frontends.onnx.reading.constants import CHAIN
from convbn.fuse.frontends.onnx.reading.operators import operator_of
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.contraction import Contraction
from convbn.fuse.operators.evaluation import evaluated
from convbn.fuse.operators.registry import onnx_readers
from convbn.fuse.plan.plan import Kept
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Reader, Value
from convbn.fuse.view.op import BIAS, Other
from convbn.fuse.view.view import View

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

__all__ = ["Place", "Reading", "Scope", "read_view"]

Shapes = Mapping[str, Dimensions]


@dataclass(slots=True, eq=False)
class Scope:
    """The main graph or a body, and what its names stand for."""

    name: str
    graph: onnx.GraphProto
    outer: Scope | None = None
    values: dict[str, Value] = field(default_factory=dict)
    declared: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)

    def find(self, name: str) -> Value | None:
        """What the name stands for here: in this graph, else in those around it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a view's node stands in the model: the handle of this frontend."""

    scope: Scope
    index: int
    proto: onnx.NodeProto


@dataclass(frozen=True, slots=True)
class Reading:
    """A view, where its parts stand in the model, and the BatchNorms that have no place in it."""

    view: View
    scopes: list[Scope]
    nodes: list[Node]
    unreachable: list[Kept]


def read_view(
    model: onnx.ModelProto,
    *,
    overridable: frozenset[str] = frozenset(),
    infer: Callable[[], Shapes] | None = None,
    read: Read | None = None,
) -> Reading:
    """The dataflow of ``model``, which is not changed; the view's handles point into it.

    Args:
        model: its functions are not looked into.
        overridable: initializers that a caller of the model may feed, so they are not constants.
        infer: gives shapes by tensor name; called if the model does not state one that may matter.
        read: gives the raw bytes of external tensors.

    Raises:
        BadInputError: the graph cannot be read as one.
    """
    reader = _Reader(model, overridable, infer, read)
    scopes = [Scope("", model.graph)]
    for scope in scopes:  # which grows by the bodies
        scopes += reader.read(scope)
    if reader.out_of_order:
        _check_circles(reader.nodes)
    for function in model.functions:
        for proto in function.node:
            if proto.op_type == "BatchNormalization" and is_standard(proto):
                detail = f"it stands in the model-local function {function.name}, which was not written out"
                reader.unreachable.append(Kept(reader.unique(proto), Reason.LOCAL_FUNCTION, detail))
    view = View(reader.nodes, pure=True, additions=reader.opset >= 7)
    return Reading(view, scopes, reader.nodes, reader.unreachable)


class _Reader:
    def __init__(
        self,
        model: onnx.ModelProto,
        overridable: frozenset[str],
        infer: Callable[[], Shapes] | None,
        read: Read | None,
    ) -> None:
        self._model = model
        self._overridable = overridable
        self._infer = infer
        self._read = read
        self.opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)
        self.nodes: list[Node] = []
        self.unreachable: list[Kept] = []
        self.out_of_order = False
        self._names: Counter[str] = Counter()

    def read(self, scope: Scope) -> list[Scope]:
        """Take in a graph; the bodies that its nodes hold."""
        self._declare(scope)
        bodies = []
        for index, proto in enumerate(scope.graph.node):
            self._node(scope, index, proto)
            bodies += [
                Scope(f"{scope.name}/{proto.name or proto.op_type}.{attribute}", body, scope)
                for attribute, body in named_bodies(proto)
            ]
        return bodies

    def unique(self, node: onnx.NodeProto) -> str:
        """A name for reports: the node's own, else by what it produces; numbered where it repeats."""
        name = node.name or f"{node.op_type}({node.output[0] if node.output else ''})"
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name} ({self._names[name]})"

    @cached_property
    def _shapes(self) -> Shapes:
        return {} if self._infer is None else self._infer()

    def _declare(self, scope: Scope) -> None:
        """Values for what stands in the graph beside its nodes, and what it says of the others."""
        graph, values, declared = scope.graph, scope.values, scope.declared
        main = scope.outer is None
        for tensor in graph.initializer:
            if tensor.name not in values:
                values[tensor.name] = self._initializer(tensor.name, Stored(tensor, self._read, main=main))
        for sparse in graph.sparse_initializer:
            if sparse.values.name not in values:
                values[sparse.values.name] = self._initializer(sparse.values.name, Stored(sparse, main=main))
        for info in graph.value_info:
            if info.name not in declared or not _shape_of(declared[info.name]):
                declared[info.name] = info
        for info in (*graph.input, *graph.output):
            declared.setdefault(info.name, info)
            if info.name not in values:
                values[info.name] = self._declared(scope, info.name)
        seen = "an output of the model" if main else f"an output of the body {scope.name}"
        for info in graph.output:
            values[info.name].observed = seen

    def _initializer(self, name: str, stored: Stored) -> Value:
        constant = stored.constant()
        value = Value(name, constant.shape, handle=stored)
        proto = stored.proto.values if stored.sparse else stored.proto
        value.dtype = dtype_of(proto.data_type)
        if name in self._overridable:
            detail = f"'{name}' is also a graph input: a caller may feed another value"
            value.not_constant = Refusal(Reason.OVERRIDABLE, detail)
        else:
            value.constant = constant
        return value

    def _declared(self, scope: Scope, name: str) -> Value:
        """A new value of the shape and type that the graph states."""
        info = scope.declared.get(name)
        if info is None:
            return Value(name)
        kind = info.type.tensor_type
        value = Value(name, dtype=dtype_of(kind.elem_type) if kind.elem_type else None)
        _shaped(value, _shape_of(info))
        return value

    def _read_by(self, scope: Scope, name: str) -> Value:
        value = scope.find(name)
        if value is None:
            value = scope.values[name] = self._declared(scope, name)
        return value

    def _made_by(self, scope: Scope, name: str) -> Value:
        value = scope.values.get(name)
        if value is None:
            value = scope.values[name] = self._declared(scope, name)
        return value

    def _node(self, scope: Scope, index: int, proto: onnx.NodeProto) -> None:
        name, kind = self.unique(proto), proto.op_type
        own = is_standard(proto)
        inputs = [self._read_by(scope, given) if given else None for given in proto.input]
        results = [self._made_by(scope, given) if given else None for given in proto.output]
        outputs = [value for value in results if value is not None]
        if own and kind == "Gemm" and _ignores_bias(proto, inputs):
            inputs = inputs[:BIAS]
        readers = onnx_readers(kind if own else f"{proto.domain}::{kind}")
        chained = own and kind in CHAIN
        attributes, odd = attributes_of(proto, self.opset) if readers or chained else ({}, None)
        call = OnnxCall(kind, self.opset, attributes, inputs, results)
        constant = CHAIN[kind](call) if chained and outputs and odd is None else None
        if constant is None:
            self._complete(scope, call, outputs)
        operator = operator_of(call, readers, odd, batchnorm=own and kind == "BatchNormalization")
        if isinstance(operator, Refusal):
            self.unreachable.append(Kept(name, operator.reason, operator.detail))
            operator = Other(kind)
        node = Node(name, operator, inputs, outputs, scope.name, handle=Place(scope, index, proto))
        if isinstance(operator, Contraction) or (kind == "MatMul" and outputs and outputs[0].rank != 2):
            node.adds = frozenset((BIAS,))
        for slot, value in enumerate(inputs):
            if value is not None:
                value.readers.append(Reader(node, slot))
        for value in outputs:
            if value.producer is not None or value.constant is not None:
                raise BadInputError(f"'{value.name}' is given by more than one node or initializer")
            value.producer = node
            self.out_of_order |= bool(value.readers)
        if constant is None and not chained:
            constant = evaluated(operator, inputs)
        if constant is not None:
            outputs[0].constant, outputs[0].shape = constant, constant.shape
        self.nodes.append(node)

    def _complete(self, scope: Scope, call: OnnxCall, outputs: Iterable[Value]) -> None:
        """Shapes that the model does not state."""
        for value in outputs:
            # What was inferred is of the main graph: a name in a body may be one of its own.
            if not scope.name and (value.shape is None or None in value.shape):
                _shaped(value, self._shapes.get(value.name))
            if value.shape is None and call.operator in ("Gemm", "MatMul"):
                value.shape = _linear_shape(call)


def _check_circles(nodes: Iterable[Node]) -> None:
    """Nodes may stand in another order than they run in, as onnxruntime takes them, but none may wait for itself."""
    made_by = {
        node: [v.producer for v in node.inputs if v is not None and v.producer is not None] for node in nodes
    }
    try:
        TopologicalSorter(made_by).prepare()
    except CycleError as error:
        names = " → ".join(f"'{node.name}'" for node in error.args[1][:8])
        raise BadInputError(f"the graph runs in a circle: {names}") from error


def _shape_of(info: onnx.ValueInfoProto) -> Dimensions | None:
    return dimensions(info) if info.type.tensor_type.HasField("shape") else None


def _shaped(value: Value, found: Dimensions | None) -> None:
    """Give a value its sizes, and the names of those that are open."""
    if found is not None:
        value.shape = tuple(size if isinstance(size, int) else None for size in found)
        value.names = tuple(size if isinstance(size, str) else None for size in found)


def _ignores_bias(gemm: onnx.NodeProto, inputs: Sequence[Value | None]) -> bool:
    """Whether a stored bias of a Gemm does not count, its factor being 0: another one may take its place."""
    bias = inputs[BIAS] if len(inputs) > BIAS else None
    return (bias is None or bias.producer is None) and any(
        a.name == "beta" and a.type == a.FLOAT and a.f == 0 for a in gemm.attribute
    )


def _linear_shape(call: OnnxCall) -> tuple[None, ...] | None:
    """The rank of a product, where the graph does not state it."""
    if call.operator == "Gemm":
        return (None, None)
    data, weight = [*call.inputs, None, None][:2]
    if data is None or weight is None or data.rank is None or weight.rank != 2:
        return None
    return (None,) * data.rank
