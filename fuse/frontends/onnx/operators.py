"""ONNX operators in the view's vocabulary, where the formula there holds for them exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.onnx.attributes import odd_attribute
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Value
from convbn.fuse.view.ops import (
    Activation,
    Arithmetic,
    BatchNorm,
    Concat,
    Conv,
    ConvTranspose,
    Dequantize,
    Elementwise,
    Linear,
    Mean,
    Mixture,
    Normalization,
    Op,
    Other,
    Pad,
    Passage,
    Pool,
    Reshape,
    Slice,
    Split,
    Transpose,
    Window,
)

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["in_vocabulary", "is_batchnorm", "is_standard", "operator_of", "written"]

Inputs = Sequence[Value | None]
Outputs = Sequence[Value]

_BROADCASTS_SINCE = 7
"""Opset from which Gemm, Add and the like broadcast as NumPy does."""


def is_standard(node: gs.Node) -> bool:
    """Whether the node's operator is ONNX's own: a custom domain may reuse every name."""
    return node.domain in (None, "", "ai.onnx")


def is_batchnorm(node: gs.Node) -> bool:
    """Whether the node is a BatchNormalization, foldable or not."""
    return is_standard(node) and node.op == "BatchNormalization"


def in_vocabulary(operator: str) -> bool:
    """Whether some nodes of this operator of ONNX's own have a class in the view's vocabulary."""
    return operator == "BatchNormalization" or operator in _READERS


def operator_of(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | Refusal:
    """What ``node`` computes; a refusal for a BatchNormalization that is no per-channel map."""
    if not is_standard(node) or not outputs:
        return Other(node.op)
    odd = odd_attribute(node)
    if node.op == "BatchNormalization":
        if odd is not None:
            return Refusal(Reason.PARAMETERS_MALFORMED, f"its attribute '{odd}' is of another type")
        return _batchnorm(node, opset)
    if odd is not None:
        return Other(node.op)
    read = _READERS.get(node.op) if inputs else None
    return (None if read is None else read(node, opset, inputs, outputs)) or Other(node.op)


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
    return BatchNorm(epsilon=float(node.attrs.get("epsilon", _EPSILON)), training=training)


_EPSILON = 9.999999747378752e-06
"""The default 1e-5 as an attribute holds it, a float of 32 bits."""


def _conv(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    return Conv(groups=int(node.attrs.get("group", 1)), window=_window(node, inputs))


def _window(node: gs.Node, inputs: Inputs) -> Window | None:
    """Where the kernel is laid; None where padding is left to the runtime or the rank is not known."""
    weight = inputs[1] if len(inputs) > 1 else None
    return None if weight is None or weight.rank is None else _laid(node, weight.rank - 2)


def _laid(node: gs.Node, spatial: int) -> Window | None:
    automatic = node.attrs.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID", ""):
        return None
    pads = [0] * 2 * spatial if automatic == "VALID" else list(node.attrs.get("pads", [0] * 2 * spatial))
    strides = tuple(int(n) for n in node.attrs.get("strides", [1] * spatial))
    dilations = tuple(int(n) for n in node.attrs.get("dilations", [1] * spatial))
    if len(pads) != 2 * spatial or len(strides) != spatial or len(dilations) != spatial:
        return None
    begin, end = tuple(map(int, pads[:spatial])), tuple(map(int, pads[spatial:]))
    return Window(strides, dilations, begin, end)


def _conv_transpose(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    return ConvTranspose(groups=int(node.attrs.get("group", 1)))


def _matmul(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    if len(inputs) != 2:
        return None
    for weights, values, axis in ((0, 1, -1), (1, 0, -2)):
        if inputs[values] is not None and _sums_to_one(node, opset, weights, axis, inputs[weights]):
            return Mixture(values, axis)
    return Linear(output_axis=1)


def _sums_to_one(node: gs.Node, opset: int, slot: int, axis: int, value: Value | None) -> bool:
    """Whether the operand is a softmax over ``axis`` (from the back), the one that the product sums over."""
    softmax = next(iter(node.inputs[slot].inputs), None)
    if softmax is None or softmax.op != "Softmax" or not is_standard(softmax) or odd_attribute(softmax):
        return False
    # Until opset 13 a softmax ran over its axis and all axes behind it, by default from axis 1.
    along = int(softmax.attrs.get("axis", -1 if opset >= 13 else 1))
    if along >= 0:
        if value is None or value.rank is None:
            return False
        along -= value.rank
    return along == axis and (axis == -1 or opset >= 13)


def _gemm(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    if opset < _BROADCASTS_SINCE:
        return None
    return Linear(
        output_axis=0 if node.attrs.get("transB", 0) else 1,
        data_factor=float(node.attrs.get("alpha", 1.0)),
        bias_factor=float(node.attrs.get("beta", 1.0)),
        transposed_data=bool(node.attrs.get("transA", 0)),
    )


def _elementwise(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    return Elementwise(Arithmetic(node.op)) if opset >= _BROADCASTS_SINCE and len(inputs) == 2 else None


def _activation(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    return Activation(node.op)


def _normalization(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    data = inputs[0] if inputs else None
    if node.op in ("LayerNormalization", "RMSNormalization"):
        if data is None or data.rank is None or _axis(node, data, default=-1) != data.rank - 1:
            return None
        return Normalization(node.op, None, shifts=node.op == "LayerNormalization")
    # Before opset 21 a GroupNormalization had one γ a group.
    by_channel = node.op == "InstanceNormalization" or opset >= 21
    return Normalization(node.op, 1) if by_channel else None


def _pad(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    data, pads = inputs[0], _integers(node, inputs, 1, "pads")
    if data is None or not data.rank or pads is None:
        return None
    value = inputs[2].constant if len(inputs) > 2 and inputs[2] is not None else None
    unknown = len(inputs) > 2 and inputs[2] is not None and value is None
    constant = node.attrs.get("mode", "constant") == "constant"
    filled = float(node.attrs.get("value", 0.0)) != 0 or (value is not None and bool(value.array().any()))
    if constant and (unknown or filled):
        return None
    axes: list[int] | None = list(range(data.rank))
    if len(inputs) > 3 and inputs[3] is not None:
        axes = _integers(node, inputs, 3, "axes")
    if axes is None or len(pads) != 2 * len(axes):
        return None
    ends = list(zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True))
    padded = tuple(sorted(axis % data.rank for axis, *around in ends if any(around)))
    return Pad(node.op, padded, zeros=constant and max(pads, default=0) > 0)


def _dequantize(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    data, scale = [*inputs, None, None][:2]
    if (
        data is None
        or scale is None
        or scale.rank is None
        or scale.rank > 1
        or node.attrs.get("block_size", 0)
    ):
        return None
    return Dequantize(None if scale.rank == 0 else _axis(node, data, default=1))


def _max_pool(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    return Pool(node.op, average=False)


def _average_pool(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
        "",
    )
    # With ceil_mode a last window may hang over the edge, and what it counts has changed between versions.
    unclear = bool(node.attrs.get("ceil_mode", 0)) or padded
    counts_padding = unclear and bool(node.attrs.get("count_include_pad", 0))
    kernel = tuple(int(n) for n in node.attrs.get("kernel_shape", ()))
    plain = bool(kernel) and not node.attrs.get("ceil_mode", 0) and (counts_padding or not padded)
    window = _laid(node, len(kernel)) if plain else None
    return Pool(node.op, True, counts_padding, kernel if window else None, window)


def _global_pool(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    return Pool(node.op, average=node.op == "GlobalAveragePool")


def _mean(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    data = inputs[0]
    axes = _integers(node, inputs, 1, "axes")
    if data is None or not data.rank or not axes:
        return None
    rank = data.rank
    return Mean(tuple(sorted(axis % rank for axis in axes)), rank, bool(node.attrs.get("keepdims", 1)))


def _concat(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    axis = _axis(node, outputs[0], default=1 if opset < 4 else None)
    return None if axis is None else Concat(axis)


def _split(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    data = inputs[0]
    axis = None if data is None else _axis(node, data, default=0)
    whole = len(outputs) == len(node.outputs)
    return Split(axis) if axis is not None and whole else None


def _slice(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    """One axis of known size, in steps of 1."""
    starts, stops = _integers(node, inputs, 1, "starts"), _integers(node, inputs, 2, "ends")
    axes, data = _integers(node, inputs, 3, "axes"), inputs[0]
    given = len(inputs) > 4 and inputs[4] is not None
    if given and _integers(node, inputs, 4, "steps") != [1]:
        return None
    if starts is None or stops is None or data is None or not data.shape:
        return None
    if len(starts) != 1 or len(stops) != 1:
        return None
    if axes is None and len(inputs) > 3 and inputs[3] is not None:
        return None
    axis = (axes or [0])[0] % len(data.shape)
    size = data.shape[axis]
    return None if size is None else Slice(axis, *slice(starts[0], stops[0]).indices(size)[:2])


def _transpose(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    data = inputs[0]
    if "perm" in node.attrs:
        order = tuple(int(axis) for axis in node.attrs["perm"])
    elif data is not None and data.rank is not None:
        order = tuple(range(data.rank))[::-1]
    else:
        return None
    fits = data is None or data.rank is None or len(order) == data.rank
    return Transpose(order) if fits and sorted(order) == list(range(len(order))) else None


def _reshape(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    return Reshape(node.op)


def _passage(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    if node.op == "Dropout" and (len(inputs) > 2 or len(outputs) > 1):
        return None  # it may be told to train, or its mask is used
    return Passage(node.op)


def _resize(node: gs.Node, opset: int, inputs: Inputs, outputs: Outputs) -> Op | None:
    """Interpolation with weights that sum to 1; not where it extrapolates or leaves weights out."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    if node.attrs.get("exclude_outside", 0) or node.attrs.get("mode", "nearest") not in (
        "nearest",
        "linear",
        "cubic",
    ):
        return None
    data, output = inputs[0], outputs[0]
    if data is None or data.shape is None or output.shape is None:
        return None
    return Passage(node.op) if data.shape[1:2] == output.shape[1:2] != (None,) else None


def _axis(node: gs.Node, value: Value, default: int | None) -> int | None:
    axis = node.attrs.get("axis", default)
    if axis is None:
        return None
    axis = int(axis)
    return axis if axis >= 0 else axis + value.rank if value.rank is not None else None


def _integers(node: gs.Node, inputs: Inputs, slot: int, attribute: str) -> list[int] | None:
    """A small integer input, or the attribute that older opsets had in its place."""
    if attribute in node.attrs:
        return [int(n) for n in node.attrs[attribute]]
    value = inputs[slot] if slot < len(inputs) else None
    if value is None or value.constant is None or math.prod(value.constant.shape) > 16:
        return None
    numbers = value.constant.array()
    return [int(n) for n in numbers.reshape(-1)] if numbers.dtype.kind in "iu" else None


_READERS: dict[str, Callable[[Any, int, Inputs, Outputs], Op | None]] = {
    "Add": _elementwise,
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantize,
    "Div": _elementwise,
    "Dropout": _passage,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "GroupNormalization": _normalization,
    "Identity": _passage,
    "InstanceNormalization": _normalization,
    "LayerNormalization": _normalization,
    "LeakyRelu": _activation,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _elementwise,
    "PRelu": _activation,
    "Pad": _pad,
    "RMSNormalization": _normalization,
    "ReduceMean": _mean,
    "Relu": _activation,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _elementwise,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
