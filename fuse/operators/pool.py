"""Pooling. A mean with weights that sum to 1 lets every map through; a maximum those with a positive scale.

An average that counts zeros around the data has weights that sum to less than 1 at the borders, and lets only
a scale through. A maximum pads with −∞, which no map disturbs. Where windows have gaps, one can lie around small data
without touching it: what it gives then is of no data, and no map passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape, per_axis, window
from convbn.fuse.operators.mean import reduced_shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, not_positive, onto_data
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import Labelled, Op, Window

__all__ = ["OPERATOR", "Pool"]


@dataclass(frozen=True, slots=True)
class Pool(Labelled):
    """A reduction over windows of the spatial axes (2 and on).

    Attributes:
        label: the framework's own name.
        average: whether each output is a weighted mean of inputs with weights that sum to 1; else it
            is their maximum.
        counts_padding: whether an average counts zeros around the data, so that its weights do not sum
            to 1 at the borders.
        kernel, window: the size of an average's windows and where they lie, if each output is the plain
            mean of that many numbers, zeros around the data among them; else None.
        least: sizes of the data from which on every window holds some of it, where smaller ones could do without.
    """

    average: bool
    counts_padding: bool = False
    kernel: tuple[int, ...] | None = None
    window: Window | None = None
    least: tuple[int, ...] = ()


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·pool(x) + t = pool(s·x + t)``."""
    refusal = _passes(node, affine, axis)
    return refusal if refusal is not None else onto_data(moves, node, affine, axis)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``pool(s·x + t) = s·pool(x) + t``."""
    refusal = _passes(node, affine, axis)
    return refusal if refusal is not None else moves.consume(node.outputs[0], affine, axis)


def _passes(node: Node, affine: Affine, axis: int) -> Refusal | None:
    op = cast(Pool, node.op)
    if axis != 1:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} pools along axis {axis}")
    data = node.input(0)
    sizes = (None,) * len(op.least) if data is None or data.shape is None else data.shape[2:]
    if any(size is None or size < least for size, least in zip(sizes, op.least, strict=False)):
        return Refusal(
            Reason.SHIFT_INTO_PADDING,
            f"a window of {node.label} may lie in the padding alone, at a small size",
        )
    if op.average:
        if op.counts_padding and not affine.is_scale:
            return Refusal(Reason.SHIFT_INTO_PADDING, f"{node.label} counts zeros around its data")
        return None
    return not_positive(node, affine)


def average_from_onnx(call: OnnxCall) -> Op:
    """AveragePool."""
    given = call.attributes
    padded = any(given.get("pads", ())) or call.padded_by_runtime
    # With ceil_mode a last window may hang over the edge, and what it counts has changed between versions.
    unclear = bool(given.get("ceil_mode", 0)) or padded
    counts_padding = unclear and bool(given.get("count_include_pad", 0))
    kernel = tuple(int(n) for n in given.get("kernel_shape", ()))
    plain = bool(kernel) and not given.get("ceil_mode", 0) and (counts_padding or not padded)
    laid = call.window(len(kernel)) if plain else None
    return Pool(call.operator, True, counts_padding, kernel if laid else None, laid, _least(call))


def from_onnx(call: OnnxCall) -> Op:
    """Maxima, and averages over all of an image."""
    return Pool(call.operator, average=call.operator == "GlobalAveragePool", least=_least(call))


def _least(call: OnnxCall) -> tuple[int, ...]:
    """The gaps of windows that reach into padding."""
    given = call.attributes
    gaps = tuple(int(n) for n in given.get("dilations", ()))
    padded = any(given.get("pads", ())) or call.padded_by_runtime
    return gaps if padded and any(gap > 1 for gap in gaps) else ()


def average_from_aten(call: AtenCall) -> Mapped | None:
    """``avg_pool2d`` and the like."""
    given, spatial = call.given, call.spatial
    kernel = per_axis(given.get("kernel_size"), spatial)
    strides = given.get("stride") or kernel
    laid = None if kernel is None else window(strides, given.get("padding", 0), 1, kernel)
    if kernel is None or laid is None or given.get("divisor_override") is not None:
        return None
    if call.rank() not in (None, spatial + 2):
        return None
    # With ceil_mode a last window may hang over the edge, and what it counts is a matter of its own.
    ceil = bool(given.get("ceil_mode", False))
    counted = bool(given.get("count_include_pad", True)) and (ceil or laid.padded)
    plain = not ceil and (counted or not laid.padded)
    return call.unary(Pool("AvgPool", True, counted, kernel if plain else None, laid if plain else None))


def from_aten(call: AtenCall) -> Mapped | None:
    """Maxima over windows, and averages over windows that lie inside the data."""
    if call.rank() not in (None, call.spatial + 2):
        return None
    average = "avg" in call.name
    gaps = per_axis(call.given.get("dilation") or 1, call.spatial) or ()
    padded = call.given.get("padding") not in (None, 0, [0] * call.spatial, (0,) * call.spatial)
    least = gaps if padded and any(gap > 1 for gap in gaps) else ()
    return call.unary(Pool("AdaptiveAvgPool" if average else "MaxPool", average, least=least))


def amax_from_aten(call: AtenCall) -> Mapped | None:
    """The maximum over all of the spatial axes."""
    rank, axes = call.rank(), call.given.get("dim")
    if not rank or not isinstance(axes, list | tuple) or not call.given.get("keepdim", False):
        return None
    spatial = bool(axes) and all(type(axis) is int and axis % rank > 1 for axis in axes)
    return call.unary(Pool("Max", average=False)) if spatial else None


def pooled_shape(call: AtenCall) -> Shape | None:
    """The sizes of images are known where the call says them."""
    shape, rank = call.shape(), call.spatial + 2
    if shape is None or len(shape) != rank:
        return None  # of one sample; its second axis is not the channels
    size = call.given.get("output_size")
    sizes = tuple(size) if isinstance(size, list | tuple) else (size,) * (rank - 2)
    return (*shape[:2], *(n if isinstance(n, int) else None for n in sizes))


_WINDOW = ("self", "kernel_size", "stride", "padding")


def _aten(kind: str, read: Callable[[AtenCall], Mapped | None], signature: tuple[str, ...]) -> Iterator[Aten]:
    """For one, two and three spatial axes."""
    for rank in (1, 2, 3):
        name = f"{kind}_pool{rank}d"
        further = (f"{name}_with_indices",) if "max" in kind else (f"_{name}",)
        names = (name, *further)
        yield Aten(names, read, signature, shape=pooled_shape, keeps_rank=True)


RULE = Rule("pool", Pool, backward, forward, through=True)

OPERATOR = Operator(
    Pool,
    RULE,
    onnx={
        "AveragePool": average_from_onnx,
        **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "MaxPool"), from_onnx),
    },
    aten=(
        *_aten("avg", average_from_aten, (*_WINDOW, "ceil_mode", "count_include_pad", "divisor_override")),
        *_aten("max", from_aten, (*_WINDOW, "dilation", "ceil_mode", "return_indices")),
        *_aten("adaptive_avg", from_aten, ("self", "output_size")),
        *_aten("adaptive_max", from_aten, ("self", "output_size")),
        Aten(("amax",), amax_from_aten, ("self", "dim", "keepdim"), shape=reduced_shape),
    ),
)
