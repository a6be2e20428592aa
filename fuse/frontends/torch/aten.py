"""ATen operators in the words of the dataflow view, where the formula holds exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbn.fuse.view.ops import BatchNorm, Conv, ConvTranspose, Linear, Op

if TYPE_CHECKING:
    import torch.fx

__all__ = [
    "Mapped",
    "arguments",
    "is_marker",
    "label",
    "map_aten",
    "only_metadata",
    "passes_through",
    "written_nodes",
]

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

_METADATA = (
    "aten::sym_size",
    "aten::sym_numel",
    "aten::sym_stride",
    "aten::sym_storage_offset",
    "aten::_assert_tensor_metadata",
    "prim::device",
    "prim::dtype",
)
_SAME_NUMBERS = ("aten::alias", "aten::clone", "aten::contiguous", "aten::detach")
_DROPOUTS = ("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout")


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a graph node computes.

    Attributes:
        op: the operator; the channel axis of a convolution is settled once the rank is known.
        slots: by slot, the graph node or the name of the parameter that stands there.
        names: by slot, the argument of the ATen operator; None where it has none for it.
        through: the transposition between the weight and the node, if there is one.
    """

    op: Op
    slots: tuple[torch.fx.Node | str | None, ...]
    names: tuple[str | None, ...] = ()
    through: torch.fx.Node | None = None


def _schema(node: torch.fx.Node) -> Any:
    """The schema of an ATen operator, None for any other target."""
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None


def _operator(node: torch.fx.Node) -> str:
    schema = _schema(node)
    return "" if schema is None else str(schema.name)


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by name and in order, defaults included; empty for any other node."""
    schema = _schema(node)
    if schema is None:
        return {}
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given.update(zip(given, node.args, strict=False))
    given.update(node.kwargs)
    return given


def label(node: torch.fx.Node) -> str:
    """The operator's name as reports show it."""
    operator = _operator(node)
    if operator:
        return operator.replace("::", ".")
    if isinstance(node.target, str):
        return node.target
    return str(getattr(node.target, "__name__", node.target))


def is_marker(node: torch.fx.Node) -> bool:
    """Whether a node is another name for a tensor and nothing else."""
    return _operator(node) == "aten::alias"


def only_metadata(node: torch.fx.Node) -> bool:
    """Whether a node looks at the shape, dtype or device of a tensor and not at its numbers."""
    return _operator(node) in _METADATA


def passes_through(node: torch.fx.Node) -> torch.fx.Node | None:
    """The input that a node hands on as it is, None if it does anything."""
    operator = _operator(node)
    given = arguments(node)
    if operator in _SAME_NUMBERS:
        source = given["self"]
    elif operator in _DROPOUTS and given["train"] is False:
        source = given["input"]
    else:
        return None
    return source if isinstance(source, type(node)) else None


def map_aten(node: torch.fx.Node) -> Mapped | None:
    """The operator of the view that a node is, None where there is none for it."""
    operator = _operator(node)
    if operator in _BATCH_NORMS:
        return _batch_norm(node, _BATCH_NORMS[operator])
    if operator in _CONVOLUTIONS or operator in _TRANSPOSED or operator in _GENERAL:
        given = arguments(node)
        transposed = operator in _TRANSPOSED or bool(given.get("transposed", False))
        kind = ConvTranspose if transposed else Conv
        names = ("input", "weight", "bias")
        return Mapped(kind(groups=int(given["groups"])), _nodes(node, names), names)
    if getattr(node.target, "_overloadname", "default") != "default":  # such as mm into another dtype
        return None
    if operator == "aten::linear":
        return _linear(node, ("input", "weight", "bias"), Linear(output_axis=0))
    if operator == "aten::addmm":
        given = arguments(node)
        alpha, beta = given["alpha"], given["beta"]
        if not (isinstance(alpha, int | float) and isinstance(beta, int | float)):
            return None
        return _linear(node, ("mat1", "mat2", "self"), Linear(1, float(alpha), float(beta)))
    if operator == "aten::mm":
        return _linear(node, ("self", "mat2", None), Linear(output_axis=1))
    if operator == "aten::matmul":
        return _linear(node, ("self", "other", None), Linear(output_axis=1))
    return None


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
    if weight is None or _rank(weight) != 2:
        return None
    stored = _transposed(weight)
    if stored is None:
        return Mapped(op, (data, weight, bias), names)
    op = Linear(1 - op.output_axis, op.data_factor, op.bias_factor)
    return Mapped(op, (data, stored, bias), names, through=weight)


def _transposed(node: torch.fx.Node) -> torch.fx.Node | None:
    """The matrix stored in the graph's own state of which ``node`` is the transpose."""
    operator, given = _operator(node), arguments(node)
    swaps = (
        operator == "aten::t"
        or (operator == "aten::permute" and [axis % 2 for axis in given["dims"]] == [1, 0])
        or (operator == "aten::transpose" and {given["dim0"] % 2, given["dim1"] % 2} == {0, 1})
    )
    source = given.get("self")
    if swaps and isinstance(source, type(node)) and source.op in ("placeholder", "get_attr"):
        return source
    return None


def _rank(node: torch.fx.Node) -> int | None:
    value = node.meta.get("val")
    return getattr(value, "ndim", None)


def written_nodes(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """The nodes whose tensor some operator of the graph writes to, through a view or directly."""
    for node in graph.nodes:
        schema = _schema(node)
        if schema is None:
            continue
        given = arguments(node)
        touched = [
            given[argument.name]
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if _BATCH_NORMS.get(str(schema.name), False) is not False or given.get("training") is True:
            # The schema of batch_norm does not say that training updates its statistics.
            mapped = map_aten(node)
            if mapped is not None and isinstance(mapped.op, BatchNorm) and mapped.op.training:
                touched.extend(mapped.slots[3:])
        for value in touched:
            if isinstance(value, type(node)):
                yield _base(value)


def _base(node: torch.fx.Node) -> torch.fx.Node:
    """The node whose memory ``node`` shows."""
    while node.op == "call_function":
        schema = _schema(node)
        if schema is None:  # operator.getitem, of a list of views
            source = node.args[0] if node.args else None
        else:
            given = arguments(node)
            aliased = [argument.name for argument in schema.arguments if argument.alias_info is not None]
            source = given[aliased[0]] if aliased else None
        if not isinstance(source, type(node)):
            return node
        node = source
    return node
