"""What onnxruntime and OpenVINO make one kernel of is still one after a fold: the table of ``docs/kernels.md``, tried.

Each network holds a pattern between two layers, with a BatchNorm or a scale and a shift with a number a channel in
front of it and behind it, all of which would like to move. That the runtime makes the kernel of the untouched network
is asserted, too, so a pattern that it does not know cannot stand here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from coverage_report.kernels import Change
from onnx import TensorProto, numpy_helper
from support.activations import gelu, gelu_tanh, hard_swish, mish, quick_gelu, silu
from support.graphs import Writer, model, random, relative_error, run
from support.kernels import executed_by_onnxruntime, executed_by_openvino

from convbn.fuse.fold import fold

C, L, H = 16, 6, 2

Pattern = Callable[[Writer, str], str]


def linear(w: Writer, x: str, outputs: int = C) -> str:
    seed = len(w.nodes)
    return w("Add", w("MatMul", x, random(C, outputs, seed=seed) / 4), random(outputs, seed=seed + 1))


def conv(w: Writer, x: str, kernel: int = 1, outputs: int = C, **attributes: int) -> str:
    seed, pad = len(w.nodes), kernel // 2
    inputs = C // attributes.get("group", 1)
    weight = random(outputs, inputs, kernel, kernel, seed=seed) / 4
    return w("Conv", x, weight, random(outputs, seed=seed + 1), pads=[pad] * 4, **attributes)


def layer_norm(w: Writer, x: str) -> str:
    centred = w("Sub", x, w("ReduceMean", x, [-1]))
    variance = w("ReduceMean", w("Pow", centred, 2.0), [-1])
    normal = w("Div", centred, w("Sqrt", w("Add", variance, 1e-5)))
    return w("Add", w("Mul", normal, random(C, seed=3)), random(C, seed=4))


def layer_norm_of_tensorflow(w: Writer, x: str) -> str:
    """``x·(γ/σ) + (β − μ·(γ/σ))``."""
    mean = w("ReduceMean", x, [-1])
    variance = w("ReduceMean", w("Mul", *[w("Sub", x, mean)] * 2), [-1])
    gain = w("Mul", w("Reciprocal", w("Sqrt", w("Add", variance, 1e-5))), random(C, seed=3))
    return w("Add", w("Mul", x, gain), w("Sub", random(C, seed=4), w("Mul", mean, gain)))


def rms_norm(w: Writer, x: str) -> str:
    root = w("Sqrt", w("Add", w("ReduceMean", w("Pow", x, 2.0), [-1]), 1e-5))
    return w("Mul", w("Div", x, root), random(C, seed=3))


def skip_layer_norm(w: Writer, x: str) -> str:
    return layer_norm(w, w("Add", linear(w, x), x))


def group_norm(w: Writer, x: str) -> str:
    grouped = w("Reshape", x, [0, 4, -1])
    normal = w("InstanceNormalization", grouped, np.ones(4, np.float32), np.zeros(4, np.float32))
    back = w("Reshape", normal, [1, C, 5, 5])
    return w("Add", w("Mul", back, random(C, 1, 1, seed=3)), random(C, 1, 1, seed=4))


def instance_norm(w: Writer, x: str) -> str:
    return w("InstanceNormalization", x, random(C, seed=3), random(C, seed=4))


def bias_gelu(w: Writer, x: str) -> str:
    y = w("Add", w("Softmax", x, axis=-1), random(C, seed=3))
    return w("Mul", w("Mul", y, w("Add", w("Erf", w("Div", y, 2**0.5)), 1.0)), 0.5)


def mish_by_logarithm(w: Writer, x: str) -> str:
    return w("Mul", x, w("Tanh", w("Log", w("Add", w("Exp", x), 1.0))))


def soft_plus(w: Writer, x: str) -> str:
    return w("Log", w("Add", w("Exp", x), 1.0))


def hard_swish_by_hard_sigmoid(w: Writer, x: str) -> str:
    return w("Mul", x, w("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def hard_sigmoid(w: Writer, x: str) -> str:
    return w("Div", w("Clip", w("Add", x, 3.0), 0.0, 6.0), 6.0)


def heads(w: Writer, x: str, perm: list[int]) -> str:
    return w("Transpose", w("Reshape", linear(w, x), [0, 0, H, C // H]), perm=perm)


def joined(w: Writer, x: str) -> str:
    return linear(w, w("Reshape", w("Transpose", x, perm=[0, 2, 1, 3]), [0, 0, C]))


def attention(w: Writer, x: str) -> str:
    """The scale behind the scores."""
    q, k, v = (heads(w, x, perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = w("Div", w("MatMul", q, k), (C / H) ** 0.5)
    return joined(w, w("MatMul", w("Softmax", scores, axis=-1), v))


def attention_of_scaled_queries(w: Writer, x: str) -> str:
    q, k, v = (heads(w, x, perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = w("MatMul", w("Mul", q, (H / C) ** 0.5), k)
    return joined(w, w("MatMul", w("Softmax", scores, axis=-1), v))


def bert_attention(w: Writer, x: str) -> str:
    """With a mask, behind a LayerNorm, whose output is added: the one that becomes Attention."""
    w.nodes.append(onnx.helper.make_node("Cast", ["mask"], ["known"], to=TensorProto.FLOAT))
    mask = w("Unsqueeze", w("Unsqueeze", "known", [1]), [2])
    mask = w("Mul", w("Sub", 1.0, mask), -10000.0)
    x = layer_norm(w, x)
    v = heads(w, x, [0, 2, 1, 3])
    q, k = heads(w, x, [0, 2, 1, 3]), heads(w, x, [0, 2, 3, 1])
    scores = w("Add", w("Div", w("MatMul", q, k), (C / H) ** 0.5), mask)
    return w("Add", joined(w, w("MatMul", w("Softmax", scores, axis=-1), v)), x)


def transpose_matmul(w: Writer, x: str) -> str:
    return w("MatMul", w("MatMul", x, w("Transpose", x, perm=[0, 2, 1])), x)


def biased_softmax(w: Writer, x: str) -> str:
    return w("Softmax", w("Add", w("MatMul", x, random(C, C)), random(1, 1, C)), axis=-1)


def conv_relu(w: Writer, x: str) -> str:
    return w("Relu", conv(w, w("Relu", conv(w, x, 3)), 3))


def conv_clip(w: Writer, x: str) -> str:
    return w("Clip", conv(w, w("Clip", conv(w, x, 3, group=C), 0.0, 6.0), 1), 0.0, 6.0)


def conv_sigmoid_leaky(w: Writer, x: str) -> str:
    return w("LeakyRelu", conv(w, w("Sigmoid", conv(w, x)), 1), alpha=0.1)


def conv_add_relu(w: Writer, x: str) -> str:
    y = w("Relu", x)
    return w("Relu", w("Add", conv(w, w("Relu", conv(w, y, 3)), 3), y))


def gate(w: Writer, x: str) -> str:
    """Squeeze and excitation, by a mean."""
    pooled = w("ReduceMean", x, [2, 3])
    return w("Mul", x, w("HardSigmoid", conv(w, w("Relu", conv(w, pooled))), alpha=1 / 6, beta=0.5))


def split_convs(w: Writer, x: str) -> str:
    """As mixed convolutions are exported; the biases come with the fold."""
    w.nodes.append(onnx.helper.make_node("Split", [x], [f"{x}.0", f"{x}.1"], axis=1, num_outputs=2))
    pieces = [w("Conv", f"{x}.{i}", random(C // 2, C // 2, 1, 1, seed=i) / 4) for i in range(2)]
    return w("Concat", *pieces, axis=1)


def dropout(w: Writer, x: str) -> str:
    return w("Relu", w("Dropout", conv(w, x, 3)))


def unit_norm(w: Writer, x: str) -> str:
    length = w("Sqrt", w("ReduceSum", w("Mul", x, x), [-1]))
    return w("Div", x, w("Clip", length, 1e-12))


Expected = tuple[Pattern, str, str]

IMAGES: list[Expected] = [
    # what onnxruntime, and what OpenVINO makes of the pattern
    (group_norm, "InstanceNormalization", "MVN"),
    (instance_norm, "InstanceNormalization", "MVN"),
    (gelu, "Gelu", ""),
    (gelu_tanh, "FastGelu", ""),
    (quick_gelu, "QuickGelu", ""),
    (silu, "QuickGelu", ""),
    (mish, "", ""),
    (mish_by_logarithm, "", ""),
    (soft_plus, "", ""),
    (hard_swish, "", ""),
    (hard_swish_by_hard_sigmoid, "Conv+HardSwish", ""),
    (hard_sigmoid, "", ""),
    (conv_relu, "Conv+Relu", ""),
    (conv_clip, "Conv+Clip", ""),
    (conv_sigmoid_leaky, "Conv+LeakyRelu", ""),
    (conv_add_relu, "Conv+sum+Relu", ""),
    (gate, "Conv+HardSigmoid", ""),
    (dropout, "Conv+Relu", ""),
    (split_convs, "Conv", "Convolution"),
]
SEQUENCES: list[Expected] = [
    (layer_norm, "LayerNormalization", "MVN"),
    (layer_norm_of_tensorflow, "", ""),
    (rms_norm, "SimplifiedLayerNormalization", "RMS"),
    (skip_layer_norm, "SkipLayerNormalization", "MVN"),
    (bias_gelu, "BiasGelu", ""),
    (gelu, "BiasGelu", ""),
    (gelu_tanh, "FastGelu", ""),
    (quick_gelu, "QuickGelu", ""),
    (silu, "QuickGelu", ""),
    (mish, "", ""),
    (hard_swish, "", ""),
    (attention, "FusedMatMul", ""),
    (attention_of_scaled_queries, "FusedMatMul", ""),
    (bert_attention, "FusedMatMul", "MVN"),
    (transpose_matmul, "FusedMatMul", ""),
    (biased_softmax, "Softmax", ""),
    (unit_norm, "", ""),
]


def network(pattern: Pattern, *, image: bool, maps: str) -> onnx.ModelProto:
    """A layer, maps, the pattern, maps, a layer."""
    w = Writer()

    def moved(y: str) -> str:
        if maps == "batchnorms":
            return w.batchnorm(y, C)
        size = (C, 1, 1) if image else (C,)
        seed = len(w.nodes)
        return w("Add", w("Mul", y, 1 + random(*size, seed=seed) ** 2), random(*size, seed=seed + 1))

    layer = conv if image else linear
    y = layer(w, moved(pattern(w, moved(layer(w, "x")))))
    inputs: dict[str, list[int]] = {"x": [1, C, 5, 5] if image else [1, L, C]}
    built = model(w.nodes, inputs, [y], w.constants)
    if any("mask" in node.input for node in built.graph.node):
        built.graph.input.append(onnx.helper.make_tensor_value_info("mask", TensorProto.INT64, [1, L]))
    return built


def feeds(built: onnx.ModelProto) -> dict[str, np.ndarray]:
    shape = [dimension.dim_value for dimension in built.graph.input[0].type.tensor_type.shape.dim]
    found: dict[str, np.ndarray] = {"x": random(*shape, seed=7)}
    if len(built.graph.input) > 1:
        found["mask"] = np.array([[1] * (L - 2) + [0] * 2])
    return found


CASES = [
    *((*case, True, maps) for case in IMAGES for maps in ("batchnorms", "products")),
    *((*case, False, "products") for case in SEQUENCES),
]


def named(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("pattern", "onnxruntime", "openvino", "image", "maps"), CASES, ids=named)
def test_it_is_still_one_kernel(
    pattern: Pattern, onnxruntime: str, openvino: str, image: bool, maps: str
) -> None:
    built = network(pattern, image=image, maps=maps)
    folded = fold(built).model
    given = feeds(built)
    assert relative_error(run(built, given), run(folded, given)) < 1e-5
    assert len(folded.graph.node) < len(built.graph.node)
    compare(built, folded, executed_by_onnxruntime, onnxruntime)
    if find_spec("openvino") is not None:
        compare(built, folded, executed_by_openvino, openvino)


def compare(
    built: onnx.ModelProto,
    folded: onnx.ModelProto,
    count: Callable[[onnx.ModelProto], Counter[str]],
    kernel: str,
) -> None:
    change = Change(count(built), count(folded))
    assert not change.is_fault, change
    assert not kernel or change.before[kernel], change
    # A product without the scale that was in it, and a GELU without the bias, do less.
    assert not (set(change.lost) - {"Gemm", "FusedMatMul", "FullyConnected", "BiasGelu"}), change


def test_a_broken_pattern_is_seen() -> None:
    """The half of a GELU in the layer behind it, as it stood before: exact, and five kernels for one."""
    w = Writer()
    y = conv(w, gelu(w, conv(w, "x")))
    built = model(w.nodes, {"x": [1, C, 5, 5]}, [y], w.constants)
    broken = onnx.ModelProto()
    broken.CopyFrom(built)
    half = broken.graph.node[-2]
    assert half.op_type == "Mul"
    layer = broken.graph.node[-1]
    layer.input[0] = half.input[0]
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name == layer.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / 2, weight.name))
    broken.graph.node.remove(half)
    given = feeds(built)
    assert relative_error(run(built, given), run(broken, given)) < 1e-5
    change = Change(executed_by_onnxruntime(built), executed_by_onnxruntime(broken))
    assert change.lost == {"Gelu": 1}
    assert change.is_fault
