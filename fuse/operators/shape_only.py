"""What asks a value for its shape or its type alone, which no map changes: ``Shape(s·x + t) = Shape(x)``.

There is no rule, since nothing has to be done: such a reader is left out where the readers of a value are asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.view.op import DATA, Labelled

__all__ = ["OPERATOR", "ShapeOnly"]


@dataclass(frozen=True, slots=True)
class ShapeOnly(Labelled):
    """``blind`` is the slot of which it sees no number."""

    blind: int = DATA

    def sees_numbers(self, slot: int) -> bool:
        """Of its other slots, if it has any, it does."""
        return slot != self.blind


def _onnx(blind: int) -> Callable[[OnnxCall], ShapeOnly]:
    return lambda call: ShapeOnly(call.operator, blind)


def from_aten(call: AtenCall) -> Mapped | None:
    """``zeros_like`` and the like."""
    return call.unary(ShapeOnly(call.name))


OPERATOR = Operator(
    ShapeOnly,
    onnx={
        **dict.fromkeys(("Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"), _onnx(DATA)),
        "CastLike": _onnx(1),
    },
    aten=(
        Aten(
            (
                *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
                *("new_zeros", "new_ones", "new_empty", "new_full"),
            ),
            from_aten,
        ),
    ),
)
