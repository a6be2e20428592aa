"""ATen operators in the words of the dataflow view, where the formula holds exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convbn.fuse.frontends.torch.calls.call import Call, Mapped
from convbn.fuse.frontends.torch.calls.operators import READERS, window
from convbn.fuse.frontends.torch.calls.schema import (
    arguments,
    operator_name,
    overload,
    passes_through,
    schema_of,
    shown_by,
    written_by,
)
from convbn.fuse.view.ops import BatchNorm, Conv, ConvTranspose, Linear, Mixture, Normalization

if TYPE_CHECKING:
    import torch.fx

__all__ = ["fixed_shape", "map_aten", "shape_of", "written_nodes"]

_CONVOLUTIONS = {f"aten::conv{rank}d": rank for rank in (1, 2, 3)}
_TRANSPOSED = {f"aten::conv_transpose{rank}d": rank for rank in (1, 2, 3)}
_GENERAL = ("aten::convolution", "aten::_convolution")

_BATCH_NORMS: dict[str, bool | None] = {
    # Whether it normalises by the batch; None: its argument `training` says so.
    "aten::batch_norm": None,
    "aten::native_batch_norm": None,
    "aten::cudnn_batch_norm": None,
    "aten::miopen_batch_norm": None,
    "aten::_native_batch_norm_legit": None,
    "aten::_native_batch_norm_legit_functional": None,
    "aten::_native_batch_norm_legit_no_training": False,
    "aten::_batch_norm_no_update": False,
    "aten::_batch_norm_with_update": True,
    "aten::_batch_norm_with_update_functional": True,
}
_BATCH_NORM_SLOTS = ("input", "weight", "bias", "running_mean", "running_var")
_CONV_SLOTS = ("input", "weight", "bias")

_PLAIN_OVERLOADS = ("default", "Tensor", "Scalar", "dim", "dims", "int", "ints", "sizes", "vec", "using_ints")
"""Those that compute what the operator's name says; others take another dtype, a mode or a tensor to write to."""


def map_aten(node: torch.fx.Node) -> Mapped | None:
    """The operator of the view that a node is, None where there is none for it."""
    name = operator_name(node)
    if not name.startswith("aten::"):
        return None
    if name in _BATCH_NORMS:
        return _batch_norm(node, _BATCH_NORMS[name])
    if name in _CONVOLUTIONS or name in _TRANSPOSED or name in _GENERAL:
        return _convolution(node, name in _TRANSPOSED)
    if overload(node) not in _PLAIN_OVERLOADS:
        return None
    given = arguments(node)
    if name == "aten::linear":
        return _linear(node, ("input", "weight", "bias"), Linear(output_axis=0))
    if name == "aten::addmm":
        alpha, beta = given["alpha"], given["beta"]
        if not (isinstance(alpha, int | float) and isinstance(beta, int | float)):
            return None
        return _linear(node, ("mat1", "mat2", "self"), Linear(1, float(alpha), float(beta)))
    if name == "aten::mm":
        return _linear(node, ("self", "mat2", None), Linear(output_axis=1))
    if name in ("aten::matmul", "aten::bmm"):
        mixed = _mixture(node)
        if mixed is not None or name == "aten::bmm":
            return mixed
    if name == "aten::matmul":
        return _linear(node, ("self", "other", None), Linear(output_axis=1))
    if name == "aten::scaled_dot_product_attention":
        return _attention(node)
    if name in ("aten::layer_norm", "aten::native_layer_norm", "aten::group_norm"):
        return _normalization(node, name)
    read = READERS.get(name.removeprefix("aten::").removesuffix("_"))
    if read is None or not _is_float(node):
        return None
    return read(Call(node, given, shape_of))


def _mixture(node: torch.fx.Node) -> Mapped | None:
    """A product with a softmax over what it sums: attention's mean of values."""
    names = ("self", "other" if operator_name(node) == "aten::matmul" else "mat2")
    operands = _nodes(node, names)
    for weights, values, axis in ((0, 1, -1), (1, 0, -2)):
        softmax, rank = operands[weights], _rank(operands[weights])
        while softmax is not None and passes_through(softmax) is not None:
            softmax = passes_through(softmax)
        if softmax is None or rank is None or operands[values] is None:
            continue
        along = arguments(softmax).get("dim")
        if operator_name(softmax) not in ("aten::softmax", "aten::_softmax") or type(along) is not int:
            continue
        if (along if along < 0 else along - rank) == axis:
            return Mapped(Mixture(values, axis), operands, names)
    return None


def _attention(node: torch.fx.Node) -> Mapped | None:
    """``softmax(Q·Kᵀ)·V``; with a mask a row may have no weights at all, and then their sum is not 1."""
    given = arguments(node)
    if given.get("attn_mask") is not None or given.get("dropout_p", 0.0) != 0:
        return None
    names = ("query", "value", "key")
    return Mapped(Mixture(1, -1), _nodes(node, names), names)


def _normalization(node: torch.fx.Node, name: str) -> Mapped | None:
    names = ("input", "weight", "bias")
    if name.endswith("layer_norm"):
        shape = arguments(node)["normalized_shape"]
        return (
            Mapped(Normalization("LayerNorm", None), _nodes(node, names), names) if len(shape) == 1 else None
        )
    return Mapped(Normalization("GroupNorm", 1), _nodes(node, names), names)


def _rank(node: torch.fx.Node | None) -> int | None:
    shape = None if node is None else shape_of(node)
    return None if shape is None else len(shape)


def shape_of(node: object) -> tuple[int | None, ...] | None:
    """The shape that a node of an exported graph has in every run; dimensions that may change are None."""
    return fixed_shape(getattr(node, "meta", {}).get("val"))


def fixed_shape(value: object) -> tuple[int | None, ...] | None:
    """The shape of a tensor, with None for the dimensions that may change; None for what is no tensor."""
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)


def _is_float(node: torch.fx.Node) -> bool:
    """Whether the result, or the first of several, holds real numbers."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return bool(getattr(getattr(first, "dtype", None), "is_floating_point", False))


def _convolution(node: torch.fx.Node, transposed: bool) -> Mapped | None:
    given = arguments(node)
    slots = _nodes(node, _CONV_SLOTS)
    groups = int(given["groups"])
    if transposed or given.get("transposed", False):
        return Mapped(ConvTranspose(groups), slots, _CONV_SLOTS)
    weight = slots[1]
    shape = None if weight is None else shape_of(weight)
    kernel = None if shape is None else shape[2:]
    laid = None
    if kernel is not None:
        laid = window(given["stride"], given["padding"], given["dilation"], kernel)
    return Mapped(Conv(groups, window=laid), slots, _CONV_SLOTS)


def _batch_norm(node: torch.fx.Node, training: bool | None) -> Mapped:
    given = arguments(node)
    epsilon = given["eps"] if "eps" in given else given["epsilon"]
    by_batch = bool(given["training"]) if training is None else training
    op = BatchNorm(float(epsilon), training=by_batch)
    return Mapped(op, _nodes(node, _BATCH_NORM_SLOTS), _BATCH_NORM_SLOTS)


def _nodes(node: torch.fx.Node, names: tuple[str | None, ...]) -> tuple[torch.fx.Node | None, ...]:
    given = arguments(node)
    found = (given.get(name) if name else None for name in names)
    return tuple(value if isinstance(value, type(node)) else None for value in found)


def _linear(node: torch.fx.Node, names: tuple[str | None, ...], op: Linear) -> Mapped | None:
    data, weight, bias = _nodes(node, names)
    rank = None if weight is None else shape_of(weight)
    if weight is None or rank is None or len(rank) != 2:
        return None
    stored = _transposed(weight)
    if stored is None:
        return Mapped(op, (data, weight, bias), names)
    op = Linear(1 - op.output_axis, op.data_factor, op.bias_factor)
    return Mapped(op, (data, stored, bias), names, through=weight)


def _transposed(node: torch.fx.Node) -> torch.fx.Node | None:
    """The matrix stored in the graph's own state of which ``node`` is the transpose."""
    operator, given = operator_name(node), arguments(node)
    swaps = (
        operator == "aten::t"
        or (operator == "aten::permute" and [axis % 2 for axis in given["dims"]] == [1, 0])
        or (operator == "aten::transpose" and {given["dim0"] % 2, given["dim1"] % 2} == {0, 1})
    )
    source = given.get("self")
    if swaps and isinstance(source, type(node)) and source.op in ("placeholder", "get_attr"):
        return source
    return None


def written_nodes(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """The nodes whose tensor some operator of the graph writes to, through a view or directly."""
    for node in graph.nodes:
        schema = schema_of(node)
        if schema is None:
            continue
        touched = list(written_by(node))
        if _BATCH_NORMS.get(str(schema.name), False) is not False or arguments(node).get("training") is True:
            # The schema of batch_norm does not say that training updates its statistics.
            mapped = map_aten(node)
            if mapped is not None and isinstance(mapped.op, BatchNorm) and mapped.op.training:
                touched.extend(slot for slot in mapped.slots[3:] if isinstance(slot, type(node)))
        for value in touched:
            base = value
            while (shown := shown_by(base)) is not None:
                base = shown
            yield base
