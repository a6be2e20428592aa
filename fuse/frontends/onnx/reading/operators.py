"""Nodes of an ONNX graph in the view's vocabulary, read by the operators' own readers, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convbn.fuse.operators.calls import OnnxCall, OnnxReader
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.dequantize import Dequantize
from convbn.fuse.operators.elementwise import Elementwise
from convbn.fuse.operators.quantize import Quantize
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.op import Op, Other

__all__ = ["operator_of", "written"]


def operator_of(
    call: OnnxCall, readers: Sequence[OnnxReader], odd: str | None, *, batchnorm: bool
) -> Op | Refusal:
    """What a node computes; a refusal for a BatchNormalization that is no per-channel map.

    Args:
        call: the node.
        readers: what may know the operator.
        odd: an attribute of another type than the operator gives it.
        batchnorm: whether it is ONNX's BatchNormalization.
    """
    if odd is not None and batchnorm:
        detail = f"its attribute '{odd}' is none of ONNX's, or of another type"
        return Refusal(Reason.PARAMETERS_MALFORMED, detail)
    if odd is not None or not (call.inputs or batchnorm) or not any(call.outputs):
        return Other(call.operator)
    return next((op for read in readers if (op := read(call)) is not None), Other(call.operator))


def written(op: Op) -> tuple[str, dict[str, Any]]:
    """Operator and attributes of an ONNX node that computes ``op``.

    Raises:
        TypeError: nothing asks for this operator to be written.
    """
    if isinstance(op, Elementwise):
        return str(op.operation), {}
    if isinstance(op, Conv) and op.window is not None:
        window = op.window
        return "Conv", {
            "group": op.groups,
            "strides": list(window.strides),
            "dilations": list(window.dilations),
            "pads": [*window.begin, *window.end],
        }
    if isinstance(op, Dequantize | Quantize) and op.axis is not None:
        return f"{type(op).__name__}Linear", {"axis": op.axis}
    raise TypeError(f"{op} is not written by any edit")
