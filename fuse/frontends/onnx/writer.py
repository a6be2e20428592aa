"""An edited graph back into the ModelProto it was imported from, touching nothing else.

graphsurgeon's own export would write a new model: it leaves out metadata, doc strings, overridable
initializers and whatever else it does not model. Here only what the edits changed is written: inputs,
outputs and operator of a node, the nodes that went or came, the initializers that changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.onnx.reader import bodies

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

__all__ = ["Import", "count_nodes", "import_model"]


class Import:
    """A ModelProto and the graph imported from it, node by node.

    Args:
        model: is changed by :meth:`write`.
    """

    def __init__(self, model: onnx.ModelProto, graph: gs.Graph) -> None:
        self.model = model
        self.graph = graph
        self._pairs = [
            (current, proto, dict(zip(map(id, current.nodes), proto.node, strict=True)), list(current.nodes))
            for current, proto in _paired(graph, model.graph)
        ]

    def write(self, created: list[tuple[gs.Graph, gs.Constant]], replaced: set[int]) -> None:
        """Bring the ModelProto up to date with the graph.

        Args:
            created: the constants that edits made, with the graph whose node reads them.
            replaced: identities of the nodes whose operator or attributes changed.
        """
        before = [_read_or_made(proto) for _, proto, _, _ in self._pairs]
        # Bodies first: an initializer may go once no body reads it, and a node that is copied takes its
        # bodies along as they are.
        for (current, proto, nodes, imported), names in reversed([*zip(self._pairs, before, strict=True)]):
            self._write_nodes(current, proto, nodes, imported, replaced)
            kept = _read_or_made(proto) | {value.name for value in (*proto.input, *proto.output)}
            gone = names - kept
            own = [constant for graph, constant in created if graph is current]
            _write_initializers(proto, own, gone)
            # What is said of the shape or type of a constant that was written may be true no longer.
            _delete(proto.value_info, gone | {constant.name for constant in own})

    @staticmethod
    def _write_nodes(
        current: gs.Graph,
        proto: onnx.GraphProto,
        nodes: dict[int, onnx.NodeProto],
        imported: list[gs.Node],
        replaced: set[int],
    ) -> None:
        kept = {id(node) for node in current.nodes}
        for node in current.nodes:
            original = nodes.get(id(node))
            if original is not None:
                _sync(node, original, replaced=id(node) in replaced)
        if [id(node) for node in current.nodes] == [id(node) for node in imported]:
            return
        if kept <= nodes.keys():
            gone = [id(node) not in kept for node in imported]
            for index in range(len(gone) - 1, -1, -1):
                if gone[index]:
                    del proto.node[index]
            return
        from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

        written = [nodes.get(id(node)) or OnnxExporter.export_node(node) for node in current.nodes]
        copies = [type(node).FromString(node.SerializeToString()) for node in written]
        del proto.node[:]
        proto.node.extend(copies)


def import_model(model: onnx.ModelProto) -> Import:
    """Import a model that may be changed; nothing of it is copied."""
    import onnx_graphsurgeon as gs

    return Import(model, gs.import_onnx(model))


def count_nodes(model: onnx.ModelProto) -> int:
    """Number of nodes in the model, bodies of control flow and local functions included."""
    waiting = [model.graph]
    total = sum(len(function.node) for function in model.functions)
    while waiting:
        graph = waiting.pop()
        total += len(graph.node)
        waiting.extend(a.g for node in graph.node for a in node.attribute if a.HasField("g"))
    return total


def _paired(graph: gs.Graph, proto: onnx.GraphProto) -> Iterator[tuple[gs.Graph, onnx.GraphProto]]:
    waiting = [(graph, proto)]
    while waiting:
        current, current_proto = waiting.pop(0)
        yield current, current_proto
        for node, node_proto in zip(current.nodes, current_proto.node, strict=True):
            attributes = {attribute.name: attribute for attribute in node_proto.attribute}
            waiting.extend((body, attributes[name].g) for name, body in bodies(node))


def _sync(node: gs.Node, proto: onnx.NodeProto, *, replaced: bool) -> None:
    inputs = [tensor.name for tensor in node.inputs]
    outputs = [tensor.name for tensor in node.outputs]
    if replaced:
        import onnx

        proto.op_type = node.op
        del proto.attribute[:]
        proto.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in node.attrs.items())
    if inputs != list(proto.input):
        proto.input[:] = inputs
    if outputs != list(proto.output):
        proto.output[:] = outputs


def _read_or_made(proto: onnx.GraphProto) -> set[str]:
    """Names that the nodes of ``proto`` and of the bodies below it use."""
    names: set[str] = set()
    waiting = [proto]
    while waiting:
        graph = waiting.pop()
        if graph is not proto:
            names.update(value.name for value in graph.output)
        for node in graph.node:
            names.update((*node.input, *node.output))
            waiting.extend(a.g for a in node.attribute if a.HasField("g"))
    return names


def _write_initializers(proto: onnx.GraphProto, created: list[gs.Constant], gone: set[str]) -> None:
    position = {tensor.name: index for index, tensor in enumerate(proto.initializer)}
    for constant in created:
        tensor = constant._values.tensor
        if constant.name not in position:
            proto.initializer.append(tensor)
            continue
        stored = proto.initializer[position[constant.name]]
        doc_string = stored.doc_string
        stored.CopyFrom(tensor)
        stored.doc_string = doc_string
    _delete(proto.initializer, gone)
    # What was stored sparse is stored dense once it was written to, under the same name.
    dense = gone | {constant.name for constant in created}
    for index in range(len(proto.sparse_initializer) - 1, -1, -1):
        if proto.sparse_initializer[index].values.name in dense:
            del proto.sparse_initializer[index]


def _delete(items: Any, names: set[str]) -> None:
    """Delete the messages of these names from a repeated field, for which protobuf has no public type."""
    for index in range(len(items) - 1, -1, -1):
        if items[index].name in names:
            del items[index]
