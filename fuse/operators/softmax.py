"""Softmax: no map passes it, but what it gives are weights that sum to 1 (:mod:`.weighted_mean`)."""

from __future__ import annotations

from dataclasses import dataclass

from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.view.op import Labelled, Op

__all__ = ["OPERATOR", "Softmax"]


@dataclass(frozen=True, slots=True)
class Softmax(Labelled):
    """Weights that sum to 1 along ``axis``, counted from the back; None where that is not known."""

    axis: int | None


def from_onnx(call: OnnxCall) -> Op:
    """Softmax; until opset 13 over its axis and all axes behind it, by default from axis 1."""
    given, output = int(call.attributes.get("axis", -1 if call.opset >= 13 else 1)), call.outputs[0]
    rank = None if output is None else output.rank
    axis = given if given < 0 else None if rank is None else given - rank
    return Softmax(call.operator, axis if axis == -1 or call.opset >= 13 else None)


OPERATOR = Operator(Softmax, onnx={"Softmax": from_onnx})
