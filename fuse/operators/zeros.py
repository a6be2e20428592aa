"""Zeros of a shape that is known as the model runs: a scale makes no difference to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.op import Labelled, Op

__all__ = ["OPERATOR", "Zeros", "is_zero"]

_SOUGHT = 1 << 20
"""Elements of a constant that are looked at for whether all of them are 0."""


@dataclass(frozen=True, slots=True)
class Zeros(Labelled):
    """0 everywhere; its inputs say the shape alone."""

    def sees_numbers(self, slot: int) -> bool:
        """What is filled like another tensor asks for its shape."""
        return False


def is_zero(value: Value) -> bool:
    """Whether a value is 0 everywhere, as what others are added to often is."""
    if value.constant is not None:
        return math.prod(value.constant.shape) <= _SOUGHT and not value.constant.array().any()
    return value.producer is not None and isinstance(value.producer.op, Zeros)


def filled_from_onnx(call: OnnxCall) -> Op | None:
    """ConstantOfShape, which fills with 0 unless told otherwise."""
    value = call.attributes.get("value")
    zero = value is None or (isinstance(value, Constant) and not value.array().any())
    return Zeros(call.operator) if zero else None


def expanded_from_onnx(call: OnnxCall) -> Op | None:
    """Expand of a constant 0."""
    data = call.input(0)
    constant = None if data is None else data.constant
    zero = constant is not None and constant.shape in ((), (1,)) and not constant.array().any()
    return Zeros(call.operator) if zero else None


def from_aten(call: AtenCall) -> Mapped | None:
    """``zeros``, ``zeros_like`` and ``new_zeros``, and ``full`` of 0."""
    if call.given.get("fill_value", 0) != 0:
        return None
    op = Zeros(call.name)
    return Mapped(op, ()) if call.tensor() is None else call.unary(op)


OPERATOR = Operator(
    Zeros,
    onnx={"ConstantOfShape": filled_from_onnx, "Expand": expanded_from_onnx},
    aten=(Aten(("zeros", "full", "zeros_like", "full_like", "new_zeros", "new_full"), from_aten),),
)
