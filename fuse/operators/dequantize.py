"""A weight that is stored as integers with a scale for each output channel, ``W[o] = scale[o]·(q[o] − zero[o])``.

``s[o]·W[o]``: the scale takes ``|s[o]|``; where s is negative the integers change their signs, and where it is 0 they
become 0. So the integers stay integers and nothing is quantised anew. One scale for the whole tensor cannot take a
number a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.operators.rule import Moves, Rule, constant_at, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, WEIGHT, Op

__all__ = ["OPERATOR", "Dequantize", "into_quantized", "is_dequantized"]


@dataclass(frozen=True, slots=True)
class Dequantize(Op):
    """``y = scale·(q − zero)``. Slots: integers q, scale, zero point, which may be absent.

    ``scale`` is one number (``axis`` None) or one for each index along ``axis``.
    """

    axis: int | None


INTEGERS, SCALE, ZERO = 0, 1, 2


def is_dequantized(node: Node) -> bool:
    """Whether a layer's weight comes from integers."""
    weight = node.input(WEIGHT)
    source = None if weight is None or weight.constant is not None else weight.producer
    return source is not None and isinstance(source.op, Dequantize)


def into_quantized(
    moves: Moves,
    node: Node,
    affine: Affine,
    output_axis: int,
    bias_factor: float = 1.0,
    matrix: bool = False,
) -> Refusal | None:
    """Let a layer take a map whose weight is dequantised; ``b' = s·b + t/bias_factor`` becomes a float.

    Args:
        moves: the attempt.
        node: a layer whose weight no constant is.
        affine: the map behind it.
        output_axis: of the weight.
        bias_factor: as for :class:`convbn.fuse.operators.linear.Linear`.
        matrix: whether the weight must have two axes.
    """
    weight = node.input(WEIGHT)
    source = None if weight is None else weight.producer
    integers = None if source is None else constant_at(source, INTEGERS, "weight")
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
    outputs = integers.shape[output_axis] if rank else 1
    if outputs != affine.channels:
        return wrong_channels(node, outputs, affine.channels)
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
    return moves.produce(weight, Affine.scale_by(affine.scale), output_axis, reader=node)


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
    """``scale' = |s|·scale``, ``q' = sign(s)·q``."""
    op = cast(Dequantize, node.op)
    scale, integers = moves.constant(node, SCALE), moves.constant(node, INTEGERS)
    if not affine.is_scale:
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} has no place for a shift")
    if isinstance(scale, Refusal):
        return scale
    if isinstance(integers, Refusal):
        return integers
    fits = op.axis == axis and integers is not None and integers.shape[axis : axis + 1] == (affine.channels,)
    if scale is None or integers is None or not fits or scale.shape != (affine.channels,):
        return Refusal(
            Reason.WEIGHT_NOT_CONSTANT,
            f"{node.label} has one scale for the whole weight, or its scales are along another axis",
        )
    if (affine.scale <= 0).any():
        turned = _turned(moves, node, integers, affine.scale, axis)
        if (refusal := moves.set(node, INTEGERS, turned)) is not None:
            return refusal
    magnitude = np.where(affine.scale == 0, 1.0, np.abs(affine.scale))
    return moves.set(node, SCALE, round_sum(scale.exact() * magnitude, scale.dtype))


def _turned(
    moves: Moves, node: Node, integers: Constant, scale: NDArray[np.float64], axis: int
) -> Constant | Refusal:
    """``sign(s)·q``, where the integers can hold it."""
    zero = moves.constant(node, ZERO)
    stored: NDArray[Any] = integers.array()
    shifted = isinstance(zero, Refusal) or (zero is not None and bool(zero.array().any()))
    if shifted or stored.dtype.kind != "i":
        return Refusal(
            Reason.NEGATIVE_SCALE,
            f"some scale is not positive, and the integers of {node.label} are not symmetric about 0",
        )
    sign = np.sign(scale).astype(stored.dtype).reshape([-1 if i == axis else 1 for i in range(stored.ndim)])
    lowest = np.iinfo(stored.dtype).min
    if bool(((stored == lowest) & (sign < 0)).any()):
        return Refusal(Reason.OUT_OF_RANGE, f"{node.label} holds {lowest}, which has no negative")
    return Constant.of(stored * sign)


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
    if data is None or scale is None or scale.rank is None:
        return None
    if scale.rank > 1 or call.attributes.get("block_size", 0):
        return None
    return Dequantize(None if scale.rank == 0 else call.axis(data, 1))


RULE = Rule("dequantize", Dequantize, backward)

OPERATOR = Operator(Dequantize, RULE, evaluated, onnx={"DequantizeLinear": from_onnx})
