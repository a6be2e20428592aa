"""The precision that a model carries already, and whether it was reached in the right order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convbn.export.onnx_io.validate import iterate_tensors
from convbn.export.precision.errors import QuantisationOrderError
from convbn.export.precision.graphs import element_types
from convbn.export.precision.precisions import PRECISIONS, Contents
from convbn.fuse.frontends.onnx.model.graphs import LAYERS

if TYPE_CHECKING:
    import onnx

__all__ = ["carried_precision", "contents_of", "precision_of", "refuse_unfolded_quantisation"]

_QUANTISED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
    }
)
#: By TensorProto.DataType.
_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


def contents_of(model: onnx.ModelProto) -> Contents:
    """Look through a model."""
    from onnx import helper

    codes = {tensor.data_type for tensor in iterate_tensors(model)}
    codes |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        if node.op_type == "Cast":
            codes |= {attribute.i for attribute in node.attribute if attribute.name == "to"}
    known = helper.get_all_tensor_dtypes()
    types = frozenset(helper.tensor_dtype_to_np_dtype(code).name for code in codes if code in known)
    return Contents(
        types,
        any(node.op_type in _QUANTISED for node in model.graph.node),
        # Inside of local functions no type is found.
        _computed_in(model) or types.intersection(_FLOATS.values()),
    )


def _computed_in(model: onnx.ModelProto) -> frozenset[str]:
    """See :attr:`Contents.computes`. Nodes whose type no inference finds do not count."""
    types, layers, others = element_types(model), set[str](), set[str]()
    for node in model.graph.node:
        read = {_FLOATS[types[name]] for name in node.input if types.get(name) in _FLOATS}
        if node.op_type in LAYERS:
            layers |= read
        elif node.op_type != "Cast":
            others |= read
    return frozenset(layers or others)


def carried_precision(model: onnx.ModelProto) -> str:
    """``int8`` for a model that quantises, ``fp16`` or ``bf16`` for one that computes in nothing else, or ``fp32``."""
    return precision_of(contents_of(model))


def precision_of(held: Contents) -> str:
    """See :func:`carried_precision`."""
    return next((row.name for row in PRECISIONS.values() if row.carried(held)), "fp32")


def refuse_unfolded_quantisation(model: onnx.ModelProto) -> None:
    """Refuse a model with quantisation between a linear layer and its BatchNorm.

    The scales of such a model belong to values that a folded network never has, and its engine rounds
    once more than it needs to.

    Raises:
        QuantisationOrderError: it names the pair.
    """
    producers = {name: node for node in model.graph.node for name in node.output}

    def source(node: onnx.NodeProto) -> onnx.NodeProto | None:
        return producers.get(node.input[0]) if node.input else None

    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        before = source(node)
        if before is None or before.op_type != "DequantizeLinear":
            continue
        quantise = source(before)
        linear = None if quantise is None else source(quantise)
        if linear is not None and linear.op_type in LAYERS:
            raise QuantisationOrderError(
                f"quantisation stands between {linear.op_type} {linear.name or linear.output[0]!r} and "
                f"BatchNormalization {node.name or node.output[0]!r}",
                hint="fold the float model first, then quantise; --precision as-is takes the model as it is, and a "
                "BatchNormalization before the QuantizeLinear, as training for quantisation leaves it, is folded",
            )
