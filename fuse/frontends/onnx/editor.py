"""The edits of a plan, made on an onnx-graphsurgeon graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.onnx.operators import written
from convbn.fuse.frontends.onnx.outside import Outside
from convbn.fuse.frontends.onnx.reader import Place, scopes
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.edits import Bypass, Edit, Evaluate, Replace, SetConstant
from convbn.fuse.view.op import BIAS, WEIGHT

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

__all__ = ["Editor"]


class Editor:
    """Makes edits on a graph and remembers what they touched.

    Args:
        graph: is changed.
        in_place: whether the tensors behind it may be, too; they may not if another graph shares them.
        outside: where the weights are, if not in those tensors; then large ones of the main graph are
            computed when they are written.

    Attributes:
        created: the constants that were given to a node, with the graph the node stands in.
        replaced: identities of the nodes whose operator or attributes changed.
    """

    def __init__(self, graph: gs.Graph, *, in_place: bool, outside: Outside | None = None) -> None:
        self._in_place = in_place
        self._outside = outside
        self.created: list[tuple[gs.Graph, gs.Constant]] = []
        self.replaced: set[int] = set()
        self._graph = graph
        self._kept: set[int] = set()
        self._instead: dict[int, gs.Node | None] = {}
        self._inputs = {t.name: t for _, current in scopes(graph) for t in current.inputs}
        self._observed = {id(t) for _, current in scopes(graph) for t in current.outputs}
        self._names = {name for _, current in scopes(graph) for name in current.tensors()}
        self._names |= {t.name for _, current in scopes(graph) for t in (*current.inputs, *current.outputs)}

    def apply(self, edits: Sequence[Edit]) -> None:
        """Make the edits, in order.

        Of several constants for one slot only the last is made: each is computed from what the model
        held before any edit, and in place there is no second reading of that. None is made for a node that
        is given all of its operands later.
        """
        last = {(id(e.node), e.slot): e for e in edits if isinstance(e, SetConstant)}
        given = {id(e.node): i for i, e in enumerate(edits) if isinstance(e, Replace)}
        for i, edit in enumerate(edits):
            if isinstance(edit, SetConstant):
                if last[id(edit.node), edit.slot] is edit and given.get(id(edit.node), -1) < i:
                    self._set_constant(edit.node.handle, edit.slot, edit.constant)
            elif isinstance(edit, Replace):
                self._replace(edit)
            elif isinstance(edit, Evaluate):
                self._evaluate(edit)
            elif isinstance(edit, Bypass):
                self._bypass(edit.node.handle, edit.slot)
        # Node lists are rebuilt once: deleting one by one would cost the square of their length.
        for _, current in scopes(self._graph):
            kept = [self._instead.get(id(node), node) for node in current.nodes]
            current.nodes[:] = [node for node in kept if node is not None]
        # A constant of one edit may lose its reader to the next.
        self.created = [(current, constant) for current, constant in self.created if constant.outputs]

    def _set_constant(self, place: Place, slot: int, new: Constant) -> None:
        import onnx_graphsurgeon as gs

        node = place.node
        if node.op == "MatMul" and slot == BIAS:
            # Only a product of rank 2 is ever given a bias; a Gemm is that product with a bias.
            node.op = "Gemm"
            self.replaced.add(id(node))
        old = node.inputs[slot] if slot < len(node.inputs) and node.inputs[slot].name else None
        if self._in_place and self._exclusive(old) and self._overwrite(place, old, new):
            return
        name = self._name(node, slot, old)
        constant = self._constant(place, name, new)
        while len(node.inputs) <= slot:
            node.inputs.append(gs.Variable.empty())
        node.inputs[slot] = constant
        self.created = [(g, c) for g, c in self.created if c is not old]
        self.created.append((place.graph, constant))
        if old is not None:
            self._drop_if_unused(old)

    def _replace(self, edit: Replace) -> None:
        """Another operator over other operands; values are found by the name they had when they were read."""
        import onnx_graphsurgeon as gs

        place: Place = edit.node.handle
        node = place.node
        old = list(node.inputs)
        operands: list[Any] = []
        for slot, operand in enumerate(edit.operands):
            if isinstance(operand, Constant):
                name = self._fresh(f"{node.name or node.outputs[0].name}.{slot}")
                operands.append(self._constant(place, name, operand))
                self.created.append((place.graph, operands[-1]))
            elif operand is None:
                operands.append(gs.Variable.empty())
            else:
                operands.append(self._tensor_of(operand, old))
        node.op, attributes = written(edit.op)
        node.attrs.clear()
        node.attrs.update(attributes)
        self.replaced.add(id(node))
        node.inputs.clear()
        node.inputs.extend(operands)
        for tensor in old:
            self._drop_if_unused(tensor)

    def _evaluate(self, edit: Evaluate) -> None:
        place: Place = edit.node.handle
        node = place.node
        output, old = node.outputs[0], list(node.inputs)
        self._keep_as_they_are(old)
        constant = self._constant(place, output.name, edit.constant)
        for reader in list(output.outputs):
            for index, tensor in enumerate(reader.inputs):
                if tensor is output:
                    reader.inputs[index] = constant
        self.created.append((place.graph, constant))
        node.inputs.clear()
        node.outputs.clear()
        self._instead[id(node)] = None
        for tensor in old:
            self._drop_if_unused(tensor)

    def _keep_as_they_are(self, tensors: Sequence[Any]) -> None:
        """What a constant is computed from may be read again, by an edit that computes further with it."""
        waiting, seen = list(tensors), set[int]()
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            waiting.extend(operand for producer in tensor.inputs for operand in producer.inputs)
        self._kept |= seen

    def _tensor_of(self, value: Value, inputs: list[Any]) -> Any:
        """The tensor that a value is now: a bypassed producer has handed its name on.

        What nothing produces keeps its name, which bodies beside each other may both use: what the node
        read until now comes first.
        """
        if value.producer is None:
            own = (tensor for tensor in inputs if tensor.name == value.name)
            return next(own, None) or self._inputs[value.name]
        place: Place = value.producer.handle
        return place.node.outputs[value.producer.outputs.index(value)]

    def _constant(self, place: Place, name: str, constant: Constant) -> gs.Constant:
        import onnx
        import onnx_graphsurgeon as gs
        from onnx_graphsurgeon.ir.tensor import LazyValues

        # As a TensorProto: graphsurgeon then writes every dtype as it is, bfloat16 included.
        proto = self._deferred(place, name, constant)
        return gs.Constant(name, LazyValues(proto or onnx.numpy_helper.from_array(constant.array(), name)))

    def _overwrite(self, place: Place, old: gs.Constant, new: Constant) -> bool:
        """Put a constant into the TensorProto behind ``old``, if it has one of that shape and dtype."""
        import onnx
        from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

        stored = old._values
        if not isinstance(stored, LazyValues) or isinstance(stored, SparseValues):
            return False
        proto = stored.tensor
        if tuple(proto.dims) != new.shape:
            return False
        values = new.array() if self._outside is None else None
        dtype = new.dtype if values is None else values.dtype
        if proto.data_type != onnx.helper.np_dtype_to_tensor_dtype(dtype):
            return False
        deferred = self._deferred(place, old.name, new)
        for data in ("float_data", "int32_data", "double_data", "raw_data", "external_data", "data_location"):
            proto.ClearField(data)
        if deferred is not None:
            proto.data_location = deferred.data_location
            proto.external_data.extend(deferred.external_data)
            return True
        values = new.array() if values is None else values
        # ONNX stores little-endian bytes whatever the machine.
        proto.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        return True

    def _deferred(self, place: Place, name: str, constant: Constant) -> onnx.TensorProto | None:
        """What stands for a constant of the main graph until it is written; None if it is wanted now."""
        if self._outside is None or place.graph is not self._graph:
            return None
        return self._outside.defer(name, constant)

    def _name(self, node: gs.Node, slot: int, old: Any) -> str:
        if self._exclusive(old):
            return str(old.name)
        if old is not None:
            return self._fresh(f"{old.name}_folded")
        weight = node.inputs[WEIGHT].name
        stem = weight.removesuffix("weight")
        return self._fresh(f"{stem}bias" if stem != weight else f"{weight}_bias")

    def _exclusive(self, tensor: Any) -> bool:
        """Whether nobody but one node's one slot sees this constant."""
        import onnx_graphsurgeon as gs

        seen = id(tensor) in self._observed or id(tensor) in self._kept
        return isinstance(tensor, gs.Constant) and len(tensor.outputs) == 1 and not seen

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name

    def _bypass(self, place: Place, slot: int) -> None:
        import onnx_graphsurgeon as gs

        node = place.node
        source, output = node.inputs[slot], node.outputs[0]
        readers = [reader for reader in source.outputs if reader is not node]
        taken = id(source) in self._observed
        parameters = [tensor for i, tensor in enumerate(node.inputs) if i != slot]
        node.inputs.clear()
        node.outputs.clear()
        if source.inputs and not readers and not taken:
            # The producer takes over the name, so that the names of graph outputs stay.
            producer = source.inputs[0]
            place_of = next(i for i, tensor in enumerate(producer.outputs) if tensor is source)
            producer.outputs[place_of] = output
            self._instead[id(node)] = None
        else:
            for reader in list(output.outputs):
                for index, tensor in enumerate(reader.inputs):
                    if tensor is output:
                        reader.inputs[index] = source
            self._instead[id(node)] = (
                gs.Node("Identity", node.name, inputs=[source], outputs=[output])
                if id(output) in self._observed
                else None
            )
        for tensor in parameters:
            self._drop_if_unused(tensor)

    def _drop_if_unused(self, tensor: Any) -> None:
        """Remove the nodes that only computed ``tensor``, which nobody reads any more."""
        waiting = [tensor]
        while waiting:
            current = waiting.pop()
            if current.outputs or id(current) in self._observed or not current.inputs:
                continue
            producer = current.inputs[0]
            if any(other.outputs or id(other) in self._observed for other in producer.outputs):
                continue
            self._instead[id(producer)] = None
            waiting.extend(producer.inputs)
            producer.inputs.clear()
            producer.outputs.clear()
