"""A weight that is stored as integers with a scale for each output channel, ``W[o] = scale[o]·(q[o] − zero[o])``.

``s[o]·W[o]``: the scale takes ``|s[o]|``; where s is negative the integers change their signs about the zero point, and
where it is 0 they become it. So the integers stay integers. One scale for the whole tensor becomes one for each
channel. Where the model quantises its weight as it runs (W → QuantizeLinear → DequantizeLinear), both take the same new
scales, and the weight becomes the numbers that its integers stand for: with those scales it gives the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.operators.quantize import Quantize, integers_of, scales_of
from convbn.fuse.operators.rule import Moves, Rule, constant_at, wrong_channels
from convbn.fuse.operators.transpose import Transpose
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, WEIGHT, Op

__all__ = ["OPERATOR", "Dequantize", "into_quantized", "is_dequantized"]


@dataclass(frozen=True, slots=True)
class Dequantize(Op):
    """``y = scale·(q − zero)``. Slots: integers q, scale, zero point, which may be absent.

    ``scale`` is one number (``axis`` None), one for each index along ``axis``, or with ``blocks`` one for each block of
    them, of the integers' rank.

    Attributes:
        axis: of the scales.
        spreads: one scale may become one for each index along an axis, which ONNX has from opset 13 on.
        blocks: whether the scales are of blocks.
    """

    axis: int | None
    spreads: bool = False
    blocks: bool = False


INTEGERS, SCALE, ZERO = 0, 1, 2


def is_dequantized(node: Node) -> bool:
    """Whether a layer's weight comes from integers."""
    weight = node.input(WEIGHT)
    return weight is not None and _source(weight)[0] is not None


def _source(weight: Value) -> tuple[Node | None, list[int] | None]:
    """The dequantisation that a weight comes from, and where its axes come from if it was transposed on the way."""
    node, order = (None if weight.constant is not None else weight.producer), None
    while node is not None and isinstance(node.op, Transpose):
        turn = node.op.order
        order = list(turn) if order is None else [turn[axis] for axis in order]
        data = node.input(0)
        node = None if data is None or data.constant is not None else data.producer
    return (node if node is not None and isinstance(node.op, Dequantize) else None), order


def quantized_by(node: Node) -> Node | None:
    """What quantises the integers of a dequantisation as the model runs."""
    integers = node.input(INTEGERS)
    source = None if integers is None or integers.constant is not None else integers.producer
    return source if source is not None and isinstance(source.op, Quantize) else None


def into_quantized(
    moves: Moves,
    node: Node,
    affine: Affine,
    output_axis: int,
    bias_factor: float = 1.0,
    matrix: bool = False,
    spread: NDArray[np.float64] | None = None,
) -> Refusal | None:
    """Let a layer take a map whose weight is dequantised; ``b' = s·b + t/bias_factor`` becomes a float.

    Args:
        moves: the attempt.
        node: a layer whose weight no constant is.
        affine: the map behind it.
        output_axis: of the weight.
        bias_factor: as for :class:`convbn.fuse.operators.linear.Linear`.
        matrix: whether the weight must have two axes.
        spread: what the weight's numbers are multiplied by along ``output_axis``, if not by the map's scale.
    """
    weight = node.input(WEIGHT)
    source, order = (None, None) if weight is None else _source(weight)
    stored = source if source is None else quantized_by(source) or source
    integers = None if stored is None else constant_at(stored, INTEGERS, "weight")
    scale = None if source is None else constant_at(source, SCALE, "scale")
    if isinstance(integers, Refusal):
        return integers
    if isinstance(scale, Refusal):
        return scale
    if weight is None or integers is None or scale is None:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{node.label} has no weight")
    rank = len(integers.shape)
    if matrix and rank != 2:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the weight of {node.label} has rank {rank}, not 2")
    outputs = integers.shape[output_axis if order is None else order[output_axis]] if rank else 1
    scales = affine.scale if spread is None else spread
    if outputs != scales.size:
        return wrong_channels(node, outputs, scales.size)
    bias = _bias(moves, node)
    if isinstance(bias, Refusal):
        return bias
    if bias is not None or not affine.is_scale:
        if not bias_factor:
            return Refusal(Reason.NO_BIAS, f"{node.label} multiplies its bias by 0")
        total = affine.scale * (0.0 if bias is None else bias) + affine.shift / bias_factor
        if total.shape != (affine.channels,):
            return wrong_channels(node, total.size, affine.channels)
        if (refusal := moves.set(node, BIAS, round_vector(total, scale.dtype))) is not None:
            return refusal
    return moves.produce(weight, Affine.scale_by(scales), output_axis, reader=node)


def _bias(moves: Moves, node: Node) -> NDArray[np.float64] | Refusal | None:
    """The bias, which may be dequantised like the weight."""
    bias = moves.constant(node, BIAS)
    if not isinstance(bias, Refusal):
        return None if bias is None else bias.exact()
    value = node.input(BIAS)
    source = None if value is None else value.producer
    if source is None or not isinstance(source.op, Dequantize):
        return bias
    integers, scale, zero = (moves.constant(source, slot) for slot in (INTEGERS, SCALE, ZERO))
    if not isinstance(integers, Constant) or not isinstance(scale, Constant) or isinstance(zero, Refusal):
        return bias
    known = [scale] if zero is None else [scale, zero]
    if len(integers.shape) != 1 or any(c.shape not in ((), (1,), integers.shape) for c in known):
        return bias
    result: NDArray[np.float64] = integers.exact() - (0.0 if zero is None else zero.exact())
    return result * scale.exact()


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``scale' = |s|·scale``, ``q' − zero' = sign(s)·(q − zero)``."""
    if not affine.is_scale:
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} has no place for a shift")
    scale, zero, quantizer = moves.constant(node, SCALE), moves.constant(node, ZERO), quantized_by(node)
    if isinstance(scale, Refusal):
        return scale
    integers = _integers(moves, node, quantizer)
    if isinstance(integers, Refusal):
        return integers
    op, sizes = cast(Dequantize, node.op), () if integers is None else integers.shape[axis : axis + 1]
    if (
        scale is None
        or integers is None
        or sizes != (affine.channels,)
        or not _spread(op, scale, sizes, axis)
    ):
        return Refusal(
            Reason.WEIGHT_NOT_CONSTANT,
            f"{node.label} has one scale for the whole weight, or its scales are along another axis",
        )
    if isinstance(zero, Constant) and zero.shape not in ((), (1,), scale.shape):
        detail = (
            f"the zero points of {node.label} are {list(zero.shape)} where its scales are {list(scale.shape)}"
        )
        return Refusal(Reason.PARAMETERS_MALFORMED, detail)
    # Along the axis, one for each block, or one for each index where there was one in all.
    shape = [-1 if i == axis else 1 for i in range(integers.ndim)] if len(scale.shape) > 1 else [-1]
    magnitude = np.where(affine.scale == 0, 1.0, np.abs(affine.scale)).reshape(shape)
    changed = round_sum(scale.exact() * magnitude, scale.dtype, shape.index(-1))
    if isinstance(changed, Refusal):
        return changed
    turned: tuple[NDArray[Any], Constant | None] = (integers, None)
    if (affine.scale <= 0).any():
        found = _turned(node, integers, zero, changed, affine.scale.reshape(shape), axis)
        if isinstance(found, Refusal):
            return found
        turned = found
    elif isinstance(zero, Constant) and zero.shape != changed.shape:
        turned = integers, Constant.of(np.broadcast_to(zero.array(), changed.shape).copy())
    return _write(moves, node, quantizer, changed, *turned, axis)


def _spread(op: Dequantize, scale: Constant, sizes: tuple[int, ...], axis: int) -> bool:
    """Whether the scales can take a number for each index along ``axis``."""
    if op.blocks:
        return op.axis != axis
    if scale.shape in ((), (1,)) and op.spreads:
        return True
    return op.axis == axis and scale.shape == sizes


def _integers(moves: Moves, node: Node, quantizer: Node | None) -> NDArray[Any] | Refusal | None:
    if quantizer is not None:
        source, op = node.input(INTEGERS), cast(Dequantize, node.op)
        alone = source is not None and len(source.readers) == 1 and not source.observed
        if not alone or op.axis != cast(Quantize, quantizer.op).axis or op.blocks:
            detail = (
                f"the integers of {quantizer.label} are read by others, or its scales are along another axis"
            )
            return Refusal(Reason.WEIGHT_NOT_CONSTANT, detail)
        return integers_of(moves, quantizer)
    stored = moves.constant(node, INTEGERS)
    return stored.array() if isinstance(stored, Constant) else stored


def _turned(
    node: Node,
    integers: NDArray[Any],
    zero: Constant | Refusal | None,
    scale: Constant,
    by: NDArray[np.float64],
    axis: int,
) -> tuple[NDArray[Any], Constant | None] | Refusal:
    """``sign(s)·(q − zero)`` as integers, and the zero points where others are needed.

    About 0 it is ``−q``. Elsewhere it is ``~q`` about ``~zero``, since ``~q = −q − 1``, which every integer type holds.
    """
    if isinstance(zero, Refusal) or integers.dtype.kind not in "iu":
        return Refusal(
            Reason.NEGATIVE_SCALE,
            f"some scale is not positive, and the integers of {node.label} or their zero points are not known",
        )
    whole = by.reshape([-1 if i == axis else 1 for i in range(integers.ndim)])
    about = np.zeros((), integers.dtype) if zero is None else zero.array()
    about = np.broadcast_to(about, scale.shape)
    if integers.dtype.kind == "i" and not about.any():
        lowest = np.iinfo(integers.dtype).min
        if bool(((integers == lowest) & (whole < 0)).any()):
            return Refusal(Reason.OUT_OF_RANGE, f"{node.label} holds {lowest}, which has no negative")
        kept = None if zero is None or zero.shape == scale.shape else Constant.of(about.copy())
        return integers * np.sign(whole).astype(integers.dtype), kept
    if len(scale.shape) > 1 and bool((whole == 0).any()):
        return Refusal(
            Reason.NEGATIVE_SCALE, f"a scale is 0, and {node.label} has a zero point for each block"
        )
    points = np.where(by < 0, ~about, about)
    flipped = np.where(whole < 0, ~integers, integers)
    if len(scale.shape) <= 1:
        flipped = np.where(whole == 0, points.reshape(whole.shape), flipped)
    return flipped, Constant.of(np.ascontiguousarray(points))


def _write(
    moves: Moves,
    node: Node,
    quantizer: Node | None,
    scale: Constant,
    integers: NDArray[Any],
    zero: Constant | None,
    axis: int,
) -> Refusal | None:
    op = cast(Dequantize, node.op)
    for at in (node,) if quantizer is None else (quantizer, node):
        refusal = moves.set(at, SCALE, scale)
        if refusal is None and zero is not None:
            refusal = moves.set(at, ZERO, zero)
        if refusal is None and not op.blocks and len(scale.shape) == 1 and op.axis != axis:
            refusal = moves.become(at, replace(cast(Dequantize | Quantize, at.op), axis=axis))
        if refusal is not None:
            return refusal
    if quantizer is None:
        stored = moves.constant(node, INTEGERS)
        same = isinstance(stored, Constant) and bool(np.array_equal(stored.array(), integers))
        return None if same else moves.set(node, INTEGERS, Constant.of(integers))
    # The weight becomes what its integers stand for, so that the same scales give the same integers again.
    numbers = integers.astype(np.float64)
    points = moves.constant(node, ZERO)
    shape = [-1 if i == axis else 1 for i in range(integers.ndim)]
    if isinstance(points, Constant):
        numbers -= points.exact().reshape(shape)
    weight = cast(Constant, moves.constant(quantizer, INTEGERS))
    moves.changes(quantizer.outputs[0])
    return moves.set(
        quantizer, INTEGERS, round_vector(numbers * scale.exact().reshape(shape), weight.dtype, "weight")
    )


def evaluated(op: Dequantize, known: Sequence[Constant | None]) -> Evaluated | None:
    """Over constants, where they are no more than a vector: statistics and biases. Weights stay integers."""
    integers, scale, zero = [*known, None, None][:3]
    if integers is None or scale is None or len(integers.shape) > 1:
        return None
    if any(c is not None and c.shape not in ((), (1,), integers.shape) for c in (scale, zero)):
        return None

    def exact() -> NDArray[np.float64]:
        result: NDArray[np.float64] = integers.exact() - (0.0 if zero is None else zero.exact())
        return (result * scale.exact()).reshape(integers.shape)

    return integers.shape, exact


def from_onnx(call: OnnxCall) -> Op | None:
    """DequantizeLinear with one scale, or one for each index along an axis."""
    data, scale = call.input(INTEGERS), call.input(SCALE)
    if call.attributes.get("block_size", 0):
        axis = call.axis(data, 1)
        ranks = None if data is None or scale is None else (data.rank, scale.rank)
        return (
            None if axis is None or ranks is None or ranks[0] != ranks[1] else Dequantize(axis, blocks=True)
        )
    found = scales_of(call)
    return None if found is None else Dequantize(*found)


RULE = Rule("dequantize", Dequantize, backward)

OPERATOR = Operator(Dequantize, RULE, evaluated, onnx={"DequantizeLinear": from_onnx})
