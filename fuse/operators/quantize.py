"""Quantisation of a weight as the model runs: models that were trained for integers hold it before DequantizeLinear.

It is no place for a map of its own: what the integers are follows from the weight and the scales beside it, and the
rule of the dequantisation behind it (:mod:`convbn.fuse.operators.dequantize`) writes both anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.broadcast import along
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node
from convbn.fuse.view.op import Op

__all__ = ["OPERATOR", "Quantize", "integers_of", "scales_of"]


@dataclass(frozen=True, slots=True)
class Quantize(Op):
    """``q = clip(round(x/scale) + zero)``, half to even. Slots: x, scale, zero, which may be absent.

    Attributes:
        axis: as for :class:`convbn.fuse.operators.dequantize.Dequantize`.
        spreads: likewise.
    """

    axis: int | None
    spreads: bool = False


def integers_of(moves: Moves, node: Node) -> NDArray[Any] | Refusal:
    """What a quantisation of constants gives, computed in the weight's own type as runtimes do."""
    found = [moves.constant(node, slot) for slot in range(3)]
    for constant in found:
        if isinstance(constant, Refusal):
            return constant
    weight, scale, zero = cast(list[Constant | None], found)
    if weight is None or scale is None or weight.dtype != scale.dtype or weight.dtype.kind != "f":
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{node.label} quantises no weight of its scale's type")
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    axis = cast(Quantize, node.op).axis
    sizes = () if axis is None else weight.shape[axis : axis + 1]
    fits = all(c is None or c.shape in ((), (1,), sizes) for c in (scale, zero))
    if kind.kind not in "iu" or kind.itemsize > 2 or not fits:
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"{node.label} gives no integers of a known kind")

    def spread(array: NDArray[Any]) -> NDArray[Any]:
        return along(array, axis or 0, len(weight.shape))

    limits = np.iinfo(kind)
    with np.errstate(all="ignore"):
        rounded = np.rint(weight.array() / spread(scale.array())).astype(np.float64)
    if not np.isfinite(rounded).all():
        return Refusal(Reason.BAD_STATISTICS, f"the weight of {node.label} holds Inf or NaN, or a scale is 0")
    total = rounded + (0 if zero is None else spread(zero.array()))
    result: NDArray[Any] = np.clip(total, limits.min, limits.max).astype(kind)
    return result


def scales_of(call: OnnxCall) -> tuple[int | None, bool] | None:
    """The axis of the scales, and whether one scale may become one for each index along an axis: from opset 13 on."""
    data, scale = call.input(0), call.input(1)
    if data is None or scale is None or scale.rank is None or scale.rank > 1:
        return None
    return None if scale.rank == 0 else call.axis(data, 1), call.opset >= 13 and not _odd(call)


def _odd(call: OnnxCall) -> bool:
    return any(call.attributes.get(name) for name in ("block_size", "output_dtype", "precision"))


def from_onnx(call: OnnxCall) -> Op | None:
    """QuantizeLinear with one scale, or one for each index along an axis."""
    found = scales_of(call)
    return None if found is None or _odd(call) else Quantize(*found)


OPERATOR = Operator(Quantize, onnx={"QuantizeLinear": from_onnx})
