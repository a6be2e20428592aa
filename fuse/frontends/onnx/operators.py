"""ONNX operators in the view's vocabulary, where the formula there holds for them exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.ops import BatchNorm, Conv, ConvTranspose, Linear, Op, Other

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["is_batchnorm", "is_standard", "operator_of"]

_GEMM_BROADCASTS_SINCE = 7


def is_standard(node: gs.Node) -> bool:
    """Whether the node's operator is ONNX's own: a custom domain may reuse every name."""
    return node.domain in (None, "", "ai.onnx")


def is_batchnorm(node: gs.Node) -> bool:
    """Whether the node is a BatchNormalization, foldable or not."""
    return is_standard(node) and node.op == "BatchNormalization"


def operator_of(node: gs.Node, opset: int) -> Op | Refusal:
    """What ``node`` computes; a refusal for a BatchNormalization that is no per-channel map."""
    if not is_standard(node):
        return Other(node.op)
    if node.op == "BatchNormalization":
        return _batchnorm(node, opset)
    if node.op == "Conv":
        return Conv(groups=int(node.attrs.get("group", 1)))
    if node.op == "ConvTranspose":
        return ConvTranspose(groups=int(node.attrs.get("group", 1)))
    if node.op == "MatMul":
        return Linear(output_axis=1)
    if node.op == "Gemm" and opset >= _GEMM_BROADCASTS_SINCE:
        return Linear(
            output_axis=0 if node.attrs.get("transB", 0) else 1,
            data_factor=float(node.attrs.get("alpha", 1.0)),
            bias_factor=float(node.attrs.get("beta", 1.0)),
        )
    return Other(node.op)


def _batchnorm(node: gs.Node, opset: int) -> Op | Refusal:
    if not int(node.attrs.get("spatial", 1)):
        return Refusal(
            Reason.NOT_PER_CHANNEL, "spatial=0: it has statistics for every position, not every channel"
        )
    if len(node.inputs) < 5 or not all(tensor.name for tensor in node.inputs[:5]):
        return Refusal(Reason.PARAMETERS_MALFORMED, "it has fewer than five inputs")
    if opset >= 14:
        training = bool(node.attrs.get("training_mode", 0))
    elif opset >= 7:
        # Until opset 14 the number of outputs says it: one in inference, five in training.
        training = any(output.name for output in node.outputs[1:])
    else:
        training = not int(node.attrs.get("is_test", 0))
    return BatchNorm(epsilon=float(node.attrs.get("epsilon", 1e-5)), training=training)
