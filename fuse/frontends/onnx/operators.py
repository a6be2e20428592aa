"""Nodes of an ONNX graph in the view's vocabulary, read by the operators' own readers, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.onnx.attributes import odd_attribute
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Elementwise
from convbn.fuse.operators.registry import onnx_readers, passes_maps
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Value
from convbn.fuse.view.op import Op, Other

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["in_vocabulary", "is_batchnorm", "is_standard", "operator_of", "written"]


def is_standard(node: gs.Node) -> bool:
    """Whether the node's operator is ONNX's own: a custom domain may reuse every name."""
    return node.domain in (None, "", "ai.onnx")


def is_batchnorm(node: gs.Node) -> bool:
    """Whether the node is a BatchNormalization, foldable or not."""
    return is_standard(node) and node.op == "BatchNormalization"


def in_vocabulary(operator: str) -> bool:
    """Whether a map may pass some nodes of this operator of ONNX's own, or go into them."""
    return passes_maps(operator)


def operator_of(
    node: gs.Node, opset: int, inputs: Sequence[Value | None], outputs: Sequence[Value]
) -> Op | Refusal:
    """What ``node`` computes; a refusal for a BatchNormalization that is no per-channel map."""
    readers = onnx_readers(node.op if is_standard(node) else f"{node.domain}::{node.op}")
    if not readers or not outputs or not (inputs or is_batchnorm(node)):
        return Other(node.op)
    odd = odd_attribute(node.op, opset, node.attrs)
    if odd is not None:
        if is_batchnorm(node):
            return Refusal(
                Reason.PARAMETERS_MALFORMED, f"its attribute '{odd}' is none of ONNX's, or of another type"
            )
        return Other(node.op)
    named = iter(outputs)
    results = [next(named) if tensor.name else None for tensor in node.outputs]
    call = OnnxCall(node.op, opset, node.attrs, inputs, results)
    return next((op for read in readers if (op := read(call)) is not None), Other(node.op))


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
    raise TypeError(f"{op} is not written by any edit")
