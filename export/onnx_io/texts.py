"""Names in an ONNX model are UTF-8, or the model is refused.

protobuf hands a text of other bytes out as ``bytes``, on which whatever compares, prints or counts names fails
later, in convbn and in the runtimes' Python interfaces alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from convbn.errors import BadInputError

if TYPE_CHECKING:
    import onnx

__all__ = ["check_texts"]


def check_texts(model: onnx.ModelProto) -> None:
    """Look at every name of a model: of graphs, nodes, values, tensors, attributes, functions and metadata.

    Raises:
        BadInputError: one is not UTF-8.
    """
    from convbn.export.onnx_io.validate import iterate_bodies, iterate_tensors

    nodes: list[Iterable[onnx.NodeProto]] = [function.node for function in model.functions]
    values: list[Iterable[onnx.ValueInfoProto]] = []
    graphs = [model.graph, *iterate_bodies(model)]
    for graph in graphs:
        nodes.append(graph.node)
        values.extend((graph.input, graph.output, graph.value_info))
    texts = chain(
        _of_model(model),
        (graph.name for graph in graphs),
        _of_tensors(iterate_tensors(model)),
        _of_nodes(chain.from_iterable(nodes)),
        _of_values(chain.from_iterable(values)),
    )
    for text in texts:
        if type(text) is not str:
            raise BadInputError(f"holds a name that is not UTF-8: {text!r}")


def _of_model(model: onnx.ModelProto) -> Iterator[object]:
    for opset in model.opset_import:
        yield opset.domain
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for function in model.functions:
        yield from (function.name, function.domain)
        yield from chain(function.input, function.output, function.attribute)
        yield from (attribute.name for attribute in function.attribute_proto)
        yield from (opset.domain for opset in function.opset_import)


def _of_tensors(tensors: Iterable[onnx.TensorProto]) -> Iterator[object]:
    for tensor in tensors:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[object]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain)
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            yield attribute.name
            yield attribute.ref_attr_name


def _of_values(values: Iterable[onnx.ValueInfoProto]) -> Iterator[object]:
    for value in values:
        yield value.name
        for dim in value.type.tensor_type.shape.dim:
            yield dim.dim_param
