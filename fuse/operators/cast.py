"""A cast between float types is no map of its own: ``s·cast(x) + t = cast(s·x + t)``.

What is rounded before and behind it is each number once, as in the model at hand: mixed precision casts a float16
convolution's output to float32 for a BatchNorm, and the convolution that takes the map rounds once where it did.
"""

from __future__ import annotations

from dataclasses import dataclass

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Rearrangement, Rule, follow_backward, follow_forward
from convbn.fuse.view.dataflow import Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "Cast"]

_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""Of ONNX's numbers of types."""


@dataclass(frozen=True, slots=True)
class Cast(Rearrangement):
    """The same numbers in another float type. Slot: data."""

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The same map along the same axis."""
        return affine, axis


def from_onnx(call: OnnxCall) -> Op | None:
    """Cast from a float type, as far as the graph states it, to a float type; integers have no room for a map."""
    data = call.input(DATA)
    stated = None if data is None else data.dtype
    floats = stated is None or stated.name in _FLOATS.values()
    return Cast() if floats and call.attributes.get("to") in _FLOATS else None


OPERATOR = Operator(
    Cast, Rule("cast", Cast, follow_backward, follow_forward, through=True), onnx={"Cast": from_onnx}
)
