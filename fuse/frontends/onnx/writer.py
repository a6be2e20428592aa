"""What a plan did to the view, written into the ModelProto it was read from, touching nothing else.

The view shows the model as it is to be: which nodes are left, what they read and what stands at their slots. So a
node is written where its operator or the name of something it reads or gives has changed, nodes that are gone are
deleted, and initializers are overwritten in place or get a neighbour. Metadata, doc strings and whatever else the view
does not show stay.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from convbn.fuse.frontends.onnx.model.graphs import Names, delete, graphs_below, nodes_below
from convbn.fuse.frontends.onnx.model.tensors import Deferred, Stored
from convbn.fuse.frontends.onnx.reading.operators import written
from convbn.fuse.frontends.onnx.reading.reader import Place, Reading, Scope
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import Bypass, Edit, Evaluate, Replace, SetConstant
from convbn.fuse.view.op import BIAS, WEIGHT

if TYPE_CHECKING:
    import onnx

__all__ = ["write"]


def write(reading: Reading, edits: Sequence[Edit], deferred: Deferred) -> None:
    """Bring the model up to date with the view, to which ``edits`` were applied in this order."""
    _Writer(reading, deferred).write(edits)


@dataclass(frozen=True, slots=True)
class _Made:
    """A constant that edits gave the model, and the graph that is to hold it."""

    scope: Scope
    name: str
    constant: Constant


class _Writer:
    def __init__(self, reading: Reading, deferred: Deferred) -> None:
        self._reading = reading
        self._view = reading.view
        self._deferred = deferred
        self._names = Names(
            name for scope in reading.scopes for names in (scope.values, scope.declared) for name in names
        )
        self._replaced: set[int] = set()
        self._slots: dict[tuple[int, int], str] = {}
        self._made: dict[object, _Made] = {}
        self._overwritten: list[tuple[Stored, Constant]] = []
        self._known: dict[tuple[int, Hashable], str] = {}

    def write(self, edits: Sequence[Edit]) -> None:
        self._constants(edits)
        used_before = self._nodes()
        # What stands beside the stored tensors is computed first, from these as they still are.
        tensors = [
            (made.scope, self._deferred.tensor(made.name, made.constant, main=made.scope.outer is None))
            for made in self._made.values()
        ]
        for stored, constant in self._overwritten:
            self._deferred.overwrite(stored, constant)
        self._initializers(tensors, used_before)

    def _constants(self, edits: Sequence[Edit]) -> None:
        """Give names to the constants that are left in the end, in the order of their edits."""
        last = {(id(e.node), e.slot): i for i, e in enumerate(edits) if isinstance(e, SetConstant)}
        given = {id(e.node): i for i, e in enumerate(edits) if isinstance(e, Replace)}
        evaluated: dict[int, Value] = {}
        for i, edit in enumerate(edits):
            node = edit.node
            if isinstance(edit, Replace):
                self._replaced.add(id(node))
                for slot, operand in enumerate(edit.operands):
                    if isinstance(operand, Constant):
                        self._name_operand(node, slot)
            elif isinstance(edit, Bypass):
                continue
            elif isinstance(edit, Evaluate):
                output = node.outputs[0]
                evaluated[id(output)] = output
                if output.constant is not None:
                    self._made[id(output)] = _Made(node.handle.scope, _name(output), output.constant)
            elif node in self._view and last[id(node), edit.slot] == i > given.get(id(node), -1):
                self._name_constant(node, edit.slot, evaluated)
        for key, output in evaluated.items():
            if not output.readers:
                self._made.pop(key, None)
        self._share()

    def _share(self) -> None:
        """Of equal results, as of a layer that is called several times, the model holds one."""
        for slot in self._slots:
            made = self._made.get(slot)
            if made is not None:
                name = self._known.setdefault((id(made.scope), made.constant.key), made.name)
                if name != made.name:
                    del self._made[slot]
                    self._slots[slot] = name

    def _name_operand(self, node: Node, slot: int) -> None:
        place: Place = node.handle
        key, value = (id(node), slot), node.input(slot)
        self._slots[key] = self._names.fresh(f"{place.proto.name or _name(node.outputs[0])}.{slot}")
        self._made.pop(key, None)
        if node in self._view and value is not None and value.constant is not None:
            self._made[key] = _Made(place.scope, self._slots[key], value.constant)

    def _name_constant(self, node: Node, slot: int, evaluated: dict[int, Value]) -> None:
        """A constant takes the place of the stored one if nobody else reads that; else it gets a name of its own."""
        key: object = (id(node), slot)
        value = node.inputs[slot]
        if key in self._made or value is None or value.constant is None:
            return
        root = value
        while root.alone and root.replaces is not None:
            root = root.replaces
        scope: Scope = node.handle.scope
        if isinstance(root.handle, Stored):
            name = root.name
            if not root.handle.sparse and (root.shape, root.dtype) == (value.shape, value.constant.dtype):
                self._overwritten.append((root.handle, value.constant))
                self._known[id(_home(scope, root)), value.constant.key] = name
                return
            scope = _home(scope, root)
        elif id(root) in evaluated:
            key, name = id(evaluated.pop(id(root))), _name(root)
        elif root.replaces is not None:
            name = self._names.fresh(f"{_name(root.replaces)}_folded")
        else:
            weight = self._name_at(node, WEIGHT)
            stem = weight.removesuffix("weight")
            name = self._names.fresh(f"{stem}bias" if stem != weight else f"{weight}_bias")
        self._slots[id(node), slot] = name
        self._made[key] = _Made(scope, name, value.constant)

    def _name_at(self, node: Node, slot: int) -> str:
        value = node.input(slot)
        return "" if value is None else self._slots.get((id(node), slot)) or _name(value)

    def _nodes(self) -> set[str]:
        """Write the nodes that changed and delete those that are gone; the names that these used before."""
        before: set[str] = set()
        resized: list[Node] = []
        for node in self._reading.nodes:
            place: Place = node.handle
            if node not in self._view:
                for below in nodes_below([place.proto]):
                    before.update((*below.input, *below.output))
                resized.append(node)
            elif node.changed:
                before.update((*place.proto.input, *place.proto.output))
                self._write_node(node, place.proto)
                resized += [node] * _gains_addition(node)
        given: set[tuple[int, str]] = set()
        # From behind, so that places in front keep their numbers.
        for node in reversed(resized):
            graph, index = node.handle.scope.graph, node.handle.index
            if node in self._view:
                graph.node.insert(index + 1, self._addition(node, graph.node[index]))
            elif not _keep_as_identity(node, given):
                del graph.node[index]
        return before

    def _addition(self, node: Node, product: onnx.NodeProto) -> onnx.NodeProto:
        """The addition of a product's bias, which gives the product's value in its place."""
        import onnx

        bias, output = product.input[BIAS], product.output[0]
        del product.input[BIAS:]
        product.output[0] = self._names.fresh(f"{output}_product")
        name = self._nodes_names.fresh(f"{product.name}_bias") if product.name else ""
        return onnx.helper.make_node("Add", [product.output[0], bias], [output], name)

    @cached_property
    def _nodes_names(self) -> Names:
        return Names(node.handle.proto.name for node in self._reading.nodes)

    def _write_node(self, node: Node, proto: onnx.NodeProto) -> None:
        if id(node) in self._replaced:
            kind, attributes = written(node.op)
        elif proto.op_type == "MatMul" and len(node.inputs) > BIAS and not node.adds:
            # A Gemm is a product of rank 2 with a bias; others gain an addition.
            kind, attributes = "Gemm", {}
        else:
            kind, attributes = "", {}
        if kind:
            import onnx

            proto.op_type = kind
            del proto.attribute[:]
            proto.attribute.extend(
                onnx.helper.make_attribute(key, value) for key, value in attributes.items()
            )
        inputs = [self._name_at(node, slot) for slot in range(len(node.inputs))]
        named = iter(node.outputs)
        outputs = [_name(next(named)) if name else "" for name in proto.output]
        if inputs != list(proto.input):
            if proto.op_type == "Gemm" and len(inputs) > BIAS:
                for attribute in proto.attribute:
                    if attribute.name == "beta" and attribute.f == 0:
                        attribute.f = 1.0  # the bias that stood beside it did not count
            proto.input[:] = inputs
        if outputs != list(proto.output):
            proto.output[:] = outputs

    def _initializers(
        self, tensors: Sequence[tuple[Scope, onnx.TensorProto]], used_before: AbstractSet[str]
    ) -> None:
        """Add what was made, and delete what only those read that read it no more."""
        graphs = list(graphs_below(self._reading.scopes[0].graph))
        used: dict[int, set[str]] = {id(graph): set() for graph, _ in graphs}
        for graph, outer in reversed(graphs):
            own = used[id(graph)]
            for node in graph.node:
                own.update(node.input, node.output)
            if outer is not None:
                used[id(outer)].update(own, (value.name for value in graph.output))
            own.update(value.name for value in (*graph.input, *graph.output))
        for scope in self._reading.scopes:
            if id(scope.graph) in used:  # it may have gone with the node that holds it
                made = [tensor for place, tensor in tensors if place is scope]
                _write_initializers(scope.graph, made, used_before - used[id(scope.graph)])


def _home(scope: Scope, value: Value) -> Scope:
    """The graph, this one or one around it, that a stored value stands in."""
    while scope.values.get(value.name) is not value and scope.outer is not None:
        scope = scope.outer
    return scope


def _name(value: Value) -> str:
    return value.renamed or value.name


def _gains_addition(node: Node) -> bool:
    """Whether a product was given a bias, for which it has no place of its own."""
    return BIAS in node.adds and node.input(BIAS) is not None


def _keep_as_identity(node: Node, given: set[tuple[int, str]]) -> bool:
    """Whether a bypassed node gave a value that is seen by its name, and gives it on from now on.

    Args:
        node: it becomes an Identity then.
        given: graphs and names that others give on already: of two bypassed nodes in a row, one does.
    """
    output = node.outputs[0] if node.outputs else None
    source = output
    while source is not None and source.gave_way_to is not None:
        source = source.gave_way_to
    if output is None or source is None or not output.observed or _name(source) == _name(output):
        return False
    place: Place = node.handle
    key = id(place.scope), _name(output)
    if key in given:
        return False
    given.add(key)
    proto = place.proto
    name = proto.name
    proto.Clear()
    proto.op_type = "Identity"
    proto.input.append(_name(source))
    proto.output.append(_name(output))
    if name:
        proto.name = name
    return True


def _write_initializers(
    graph: onnx.GraphProto, made: Sequence[onnx.TensorProto], gone: AbstractSet[str]
) -> None:
    names = {tensor.name for tensor in made}
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.name in names}
    for tensor in made:
        known = stored.get(tensor.name)
        if known is None:
            graph.initializer.append(tensor)
        else:
            doc_string = known.doc_string
            known.CopyFrom(tensor)
            known.doc_string = doc_string
    delete(graph.initializer, gone)
    # What is said of the shape or type of a constant that was written may be true no longer.
    delete(graph.value_info, gone | names)
    # What was stored sparse is stored dense once it was written to, under the same name.
    for index in range(len(graph.sparse_initializer) - 1, -1, -1):
        if graph.sparse_initializer[index].values.name in gone | names:
            del graph.sparse_initializer[index]
