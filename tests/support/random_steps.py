"""Steps by which a random graph grows: operators, and blocks of them that real networks hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from support.graphs import batchnorm_parameters, random

Shape = tuple[int, ...]


@dataclass
class Growth:
    """A graph as it grows: the values that may be read, with their shapes."""

    draw: Any
    dtype: Any = np.float32
    statistics: Any = np.float32
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    values: list[tuple[str, Shape]] = field(default_factory=list)
    sets: list[list[str]] = field(default_factory=list)

    def of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    @property
    def wide(self) -> bool:
        """Whether the floats are of a type that ONNX has all operators for, which bfloat16 is not."""
        return np.dtype(self.dtype).kind == "f"

    def seed(self) -> int:
        return int(self.draw(st.integers(0, 10_000)))

    def pick(self, least: int = 2) -> tuple[str, Shape]:
        """Mostly the newest value, so that chains form; sometimes an older one, so that they branch."""
        fitting = [v for v in self.values if len(v[1]) >= least] or [self.values[0]]
        return fitting[self.of(-1, -1, -1, *range(len(fitting)))]

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        return self.add_several(op, inputs, [shape], **attributes)[0]

    def add_several(self, op: str, inputs: list[str], shapes: list[Shape], **attributes: Any) -> list[str]:
        names = [f"{self.prefix}v{len(self.nodes)}_{i}" for i in range(len(shapes))]
        label = f"{self.prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, names, name=label, **attributes))
        self.values += zip(names, shapes, strict=True)
        return names

    def tensor(self, array: np.ndarray, dtype: Any = None) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = array.astype(dtype or self.dtype) if array.dtype.kind == "f" else array
        return name

    def weight(self, *shape: int, fan: int) -> str:
        """A weight, now and then one that another layer has too."""
        alike = (shape, np.dtype(self.dtype))
        same = [name for name, array in self.tensors.items() if (array.shape, array.dtype) == alike]
        if same and self.of(True, False, False, False):
            return self.of(*same)
        return self.tensor(random(*shape, seed=self.seed()) / np.sqrt(fan))


def batchnorm(g: Growth) -> None:
    normalise(g, *g.pick())


def normalise(g: Growth, name: str, shape: Shape) -> str:
    channels = shape[1]
    same = [names for names in g.sets if g.tensors[names[0]].shape == (channels,)]
    if same and g.of(True, False, False, False):
        return g.add("BatchNormalization", [name, *g.of(*same)], shape)
    parameters = batchnorm_parameters(channels, seed=g.seed())
    if g.of(True, True, False):
        parameters["bn.gamma"] = np.abs(parameters["bn.gamma"])
    if g.of(True, False, False, False):
        parameters["bn.beta"] *= 0
        parameters["bn.mean"] *= 0
    # γ and β are of one type, μ and σ² of one, and the data of its own.
    names = [g.tensor(array, g.statistics) for array in parameters.values()]
    g.sets.append(names)
    return g.add("BatchNormalization", [name, *names], shape, epsilon=g.of(1e-5, 1e-3))


def conv(g: Growth) -> None:
    name, (n, c, *space) = g.pick(3)
    k = g.of(1, 1, 2, 3)
    stride, dilation = g.of(1, 1, 2), g.of(1, 1, 2)
    begin, end = g.of((0, 0), (1, 1), (k // 2, k // 2), (0, 1))
    reach = dilation * (k - 1) + 1
    sizes = [(size + begin + end - reach) // stride + 1 for size in space]
    if min(size + begin + end for size in space) < reach or max(begin, end) >= reach + 1:
        return
    groups = g.of(1, 1, c, *([2] if c % 2 == 0 else []))
    outputs = c if groups > 1 else g.of(4, 6, c)
    fan = c // groups * k ** len(space)
    inputs = [name, g.weight(outputs, c // groups, *[k] * len(space), fan=fan)]
    if g.of(True, False):
        inputs.append(g.weight(outputs, fan=1))
    rank = len(space)
    g.add(
        "Conv",
        inputs,
        (n, outputs, *sizes),
        pads=[begin] * rank + [end] * rank,
        strides=[stride] * rank,
        dilations=[dilation] * rank,
        group=groups,
    )


def product(g: Growth) -> None:
    """A matrix without a bias on the channels: by letters, from the left, or between two transpositions."""
    name, shape = g.pick(3)
    outputs, rank = g.of(2, shape[1]), len(shape)
    made, way = (shape[0], outputs, *shape[2:]), g.of("letters", "left", "right")
    if g.wide and (way == "letters" or (way == "left" and rank > 3)):
        letters = "nchwd"[:rank]
        equation = f"oc,{letters}->{letters.replace('c', 'o')}"
        weight = g.weight(outputs, shape[1], fan=shape[1])
        g.add("Einsum", [weight, name], made, equation=equation)
    elif way == "left" and rank == 3:
        g.add("MatMul", [g.weight(outputs, shape[1], fan=shape[1]), name], made)
    else:
        last = (shape[0], *shape[2:], shape[1])
        turned = g.add("Transpose", [name], last, perm=[0, *range(2, rank), 1])
        weight = g.weight(shape[1], outputs, fan=shape[1])
        mixed = g.add("MatMul", [turned, weight], (*last[:-1], outputs))
        g.add("Transpose", [mixed], made, perm=[0, rank - 1, *range(1, rank - 1)])


def conv_transpose(g: Growth) -> None:
    name, (n, c, *space) = g.pick(3)
    if max(space) > 12:
        return
    groups = g.of(1, c, *([2] if c % 2 == 0 else []))
    stride, pad = g.of(1, 2), g.of(0, 0, 1)
    k, outputs = g.of(2, 3), g.of(1, 2) * c // groups if groups > 1 else g.of(4, 6)
    if not outputs:
        return
    weight = g.weight(c, outputs, *[k] * len(space), fan=c)
    sizes = [(size - 1) * stride + k - 2 * pad for size in space]
    if min(sizes) < 1:
        return
    rank = len(space)
    attributes: dict[str, Any] = {"strides": [stride] * rank, "pads": [pad] * 2 * rank, "group": groups}
    if stride == 2 and g.of(True, False):
        attributes["output_padding"] = [1] * rank
        sizes = [size + 1 for size in sizes]
    g.add("ConvTranspose", [name, weight], (n, outputs * groups, *sizes), **attributes)


def activation(g: Growth) -> None:
    name, shape = g.pick()
    g.add(g.of("Relu", "Relu", "LeakyRelu", "Sigmoid", "Identity"), [name], shape)


def bent(g: Growth) -> None:
    """Clip with bounds, PRelu with a slope a channel or one in all."""
    name, shape = g.pick()
    if g.of(True, False):
        bounds = [g.tensor(np.float32(b)) for b in g.of((0, 6), (-1, 1), (0, 1.5))]
        if g.of(True, False, False):
            bounds[1] = ""
        g.add("Clip", [name, *bounds], shape)
    else:
        form = g.of((1,), (shape[1], *[1] * (len(shape) - 2)))
        g.add("PRelu", [name, g.tensor(np.abs(random(*form, seed=g.seed())))], shape)


def combine(g: Growth) -> None:
    name, shape = g.pick()
    others = [v for v, s in g.values if s == shape]
    thin = [v for v, s in g.values if len(s) == len(shape) and s[:2] == shape[:2] and set(s[2:]) <= {1}]
    g.add(g.of("Add", "Add", "Add", "Sub", "Mul"), [name, g.of(*others, *thin)], shape)


def constant(g: Growth) -> None:
    name, shape = g.pick()
    c, ones = shape[1], [1] * (len(shape) - 2)
    form = g.of((c, *ones), (1, c, *ones), (), (1,), (shape[-1],), shape[1:], (1, *shape[1:]))
    numbers = g.tensor(1 + 0.3 * random(*form, seed=g.seed()))
    operation = g.of("Add", "Mul", "Sub", "Div")
    if operation == "Div" or g.of(True, False):
        g.add(operation, [name, numbers], shape)
    else:
        g.add(operation, [numbers, name], shape)


def reciprocal(g: Growth) -> None:
    name, shape = g.pick()
    gate = g.add("Sigmoid", [name], shape)
    g.add(
        "Div", [g.tensor(1 + np.abs(random(shape[1], *[1] * (len(shape) - 2), seed=g.seed()))), gate], shape
    )


def pool(g: Growth) -> None:
    name, (n, c, *space) = g.pick(3)
    rank, kind = len(space), g.of("MaxPool", "AveragePool", "global", "mean")
    if kind == "global":
        g.add(g.of("GlobalAveragePool", "GlobalMaxPool"), [name], (n, c, *[1] * rank))
    elif kind == "mean":
        keep = g.of(0, 1)
        axes = g.tensor(np.arange(2, 2 + rank))
        g.add("ReduceMean", [name, axes], (n, c, *[1] * rank) if keep else (n, c), keepdims=keep)
    elif min(space) >= 3:
        pad, stride = g.of(0, 1), g.of(1, 2)
        attributes: dict[str, Any] = {"kernel_shape": [3] * rank, "pads": [pad] * 2 * rank}
        if kind == "AveragePool":
            attributes["count_include_pad"] = g.of(0, 1)
        sizes = [(size + 2 * pad - 3) // stride + 1 for size in space]
        g.add(kind, [name], (n, c, *sizes), strides=[stride] * rank, **attributes)


def resize(g: Growth) -> None:
    name, (n, c, *space) = g.pick(4)
    if len(space) != 2 or max(space) > 8:
        return
    scales = g.tensor(np.float32([1, 1, 2, 2]), np.float32)
    mode = g.of("nearest", "linear")
    g.add("Resize", [name, "", scales], (n, c, *[2 * size for size in space]), mode=mode)


def pad(g: Growth) -> None:
    name, (n, c, *space) = g.pick(3)
    mode, axis = g.of("constant", "reflect", "edge"), g.of(-1, -1, -1, 1)
    if mode == "reflect" and (axis == 1 or space[-1] < 2):
        return
    rank = 2 + len(space)
    amounts = np.zeros(2 * rank, np.int64)
    amounts[axis % rank] = amounts[rank + axis % rank] = 1
    shape = [n, c, *space]
    shape[axis] += 2
    inputs = [name, g.tensor(amounts)]
    if mode == "constant" and g.of(True, False):
        inputs.append(g.tensor(np.float32(g.of(0, 1))))
    g.add("Pad", inputs, tuple(shape), mode=mode)


def concat(g: Growth) -> None:
    name, shape = g.pick()
    axis = g.of(1, 1, 1, len(shape) - 1)
    rest = [
        (v, s)
        for v, s in g.values
        if len(s) == len(shape)
        and all(a == b for i, (a, b) in enumerate(zip(s, shape, strict=True)) if i != axis)
        if s[axis] + shape[axis] <= 14
    ]
    if rest:
        other, other_shape = g.of(*rest)
        joined = list(shape)
        joined[axis] += other_shape[axis]
        g.add("Concat", [name, other], tuple(joined), axis=axis)


def split(g: Growth) -> None:
    name, shape = g.pick()
    axis = g.of(1, 1, 1, len(shape) - 1)
    size = shape[axis]
    if size < 2:
        return
    first = g.of(1, size // 2, size - 1)
    pieces = [(*shape[:axis], n, *shape[axis + 1 :]) for n in (first, size - first)]
    g.add_several("Split", [name, g.tensor(np.int64([first, size - first]))], pieces, axis=axis)


def cut(g: Growth) -> None:
    name, shape = g.pick()
    axis = g.of(1, 1, len(shape) - 1)
    size = shape[axis]
    start, stop = g.of((0, size - 1), (1, size), (0, size), (size // 2, size))
    if stop <= start:
        return
    numbers = [g.tensor(np.int64([n])) for n in (start, g.of(stop, 2**40) if stop == size else stop, axis)]
    g.add("Slice", [name, *numbers], (*shape[:axis], stop - start, *shape[axis + 1 :]))


def flatten(g: Growth) -> None:
    name, shape = g.pick(3)
    size = math.prod(shape[1:])
    if size > 300:
        return
    flat = g.add("Flatten", [name], (shape[0], size))
    weight = g.weight(size, 6, fan=size)
    if g.of(True, False):
        g.add(
            "Gemm",
            [flat, weight, g.weight(6, fan=1)],
            (shape[0], 6),
            alpha=g.of(1.0, 0.5),
            beta=g.of(1.0, 2.0),
        )
    else:
        g.add("MatMul", [flat, weight], (shape[0], 6))


def swap(g: Growth) -> None:
    """``[N, C, *S] → [N, ∏S, C]``, perhaps a linear layer over C or a LayerNorm, and back."""
    name, (n, c, *space) = g.pick(3)
    size = math.prod(space)
    rows = g.add("Reshape", [name, g.tensor(np.int64([0, c, size]))], (n, c, size))
    last = g.add("Transpose", [rows], (n, size, c), perm=[0, 2, 1])
    kind = g.of("none", "linear", "norm", "both")
    if kind in ("norm", "both"):
        gains = [g.tensor(1 + 0.3 * random(c, seed=g.seed())), g.weight(c, fan=1)]
        last = g.add("LayerNormalization", [last, *gains], (n, size, c))
    if kind in ("linear", "both"):
        last = g.add("MatMul", [last, g.weight(c, c, fan=c)], (n, size, c))
        if g.of(True, False):
            last = g.add("Add", [last, g.weight(c, fan=1)], (n, size, c))
    back = g.add("Transpose", [last], (n, c, size), perm=[0, 2, 1])
    g.add("Reshape", [back, g.tensor(np.int64([0, c, *space]))], (n, c, *space))


def shuffle(g: Growth) -> None:
    name, (n, c, *space) = g.pick(3)
    if c % 2 or len(space) > 2:
        return
    parted, rest = (n, 2, c // 2, *space), range(3, 3 + len(space))
    apart = g.add("Reshape", [name, g.tensor(np.int64([0, 2, c // 2, *space]))], parted)
    turned = g.add("Transpose", [apart], (n, c // 2, 2, *space), perm=[0, 2, 1, *rest])
    g.add("Reshape", [turned, g.tensor(np.int64([0, c, *space]))], (n, c, *space))


def instance_norm(g: Growth) -> None:
    name, shape = g.pick(3)
    if math.prod(shape[2:]) > 3:
        gains = [g.tensor(1 + 0.3 * random(shape[1], seed=g.seed())), g.weight(shape[1], fan=1)]
        g.add("InstanceNormalization", [name, *gains], shape)


def attention(g: Growth) -> None:
    """``softmax(q·kᵀ)·v`` over the positions, with ``[N, L, C]`` in and out."""
    name, (n, c, *space) = g.pick(3)
    size = math.prod(space)
    if size > 40:
        return
    rows = g.add("Reshape", [name, g.tensor(np.int64([0, c, size]))], (n, c, size))
    last = g.add("Transpose", [rows], (n, size, c), perm=[0, 2, 1])
    q, v = (g.add("MatMul", [last, g.weight(c, c, fan=c)], (n, size, c)) for _ in range(2))
    k = g.add("Transpose", [last], (n, c, size), perm=[0, 2, 1])
    scores = g.add("MatMul", [q, k], (n, size, size))
    weights = g.add("Softmax", [scores], (n, size, size), axis=-1)
    mixed = g.add("MatMul", [weights, v], (n, size, c))
    back = g.add("Transpose", [mixed], (n, c, size), perm=[0, 2, 1])
    g.add("Reshape", [back, g.tensor(np.int64([0, c, *space]))], (n, c, *space))


def same_size_conv(g: Growth, name: str, shape: Shape, k: int, groups: int = 1) -> str:
    _n, c, *space = shape
    weight = g.weight(c, c // groups, *[k] * len(space), fan=c // groups * k ** len(space))
    return g.add("Conv", [name, weight], shape, pads=[k // 2] * 2 * len(space), group=groups)


def quantised(g: Growth) -> None:
    """A convolution or transposed one whose weight is stored in eight bits, with a scale a channel or one in all."""
    name, (n, c, *space) = g.pick(3)
    if g.dtype is np.float64:
        return  # ONNX has no such scales
    groups, outputs = g.of((1, 4), (1, 6), (c, c))
    transposed = groups == 1 and g.of(True, False, False)
    shape = (c, outputs, *[1] * len(space)) if transposed else (outputs, c // groups, *[1] * len(space))
    unsigned = g.of(True, False, False)
    lowest, kind = (0, np.uint8) if unsigned else (-128, np.int8)
    integers = np.clip(60 * random(*shape, seed=g.seed()) + 128 + lowest, lowest, lowest + 255).astype(kind)
    axis = g.of(None, 1 if transposed else 0)
    scales = 0.02 * (1 + np.abs(random(*(() if axis is None else (outputs,)), seed=g.seed())))
    inputs = [g.tensor(integers), g.tensor(np.asarray(scales, np.float32))]
    if unsigned or g.of(True, False, False):
        inputs.append(g.tensor(np.full(np.shape(scales), 128 + lowest + g.of(0, 3), kind)))
    weight = f"{g.prefix}q{len(g.nodes)}"
    attributes = {} if axis is None else {"axis": axis}
    g.nodes.append(helper.make_node("DequantizeLinear", inputs, [weight], name=f"DQ_{weight}", **attributes))
    g.add("ConvTranspose" if transposed else "Conv", [name, weight], (n, outputs, *space), group=groups)


def computed(g: Growth) -> None:
    """A convolution whose weight is computed from constants, by a product or a BatchNorm over them."""
    name, (n, c, *space) = g.pick(3)
    stem, ones = f"{g.prefix}k{len(g.nodes)}", [1] * len(space)
    stored = g.tensor(random(c, c, *ones, seed=g.seed()) / np.sqrt(c))
    if g.of(True, False):
        g.nodes.append(
            helper.make_node("Mul", [stored, g.weight(c, 1, *ones, fan=1)], [stem], name=f"Mul_{stem}")
        )
    else:
        names = [g.tensor(array, g.statistics) for array in batchnorm_parameters(c, seed=g.seed()).values()]
        g.nodes.append(helper.make_node("BatchNormalization", [stored, *names], [stem], name=f"BN_{stem}"))
    g.add("Conv", [name, stem], (n, c, *space))


def preactivation(g: Growth) -> None:
    """``x + conv(relu(bn(x)))``: the block of a pre-activation ResNet, with γ of one sign or both."""
    name, shape = g.pick(3)
    active = g.add(g.of("Relu", "LeakyRelu"), [normalise(g, name, shape)], shape)
    branch = same_size_conv(g, active, shape, g.of(1, 3))
    inputs = [name, branch] if g.of(True, False) else [branch, name]
    g.add(g.of("Add", "Add", "Sub"), inputs, shape)


def regrouped(g: Growth) -> None:
    """Blocks of an image as channels, or channels as blocks, in either order."""
    name, (n, c, *space) = g.pick(4)
    if len(space) != 2:
        return
    if c % 4 == 0 and g.of(True, False):
        shape = (n, c // 4, *(2 * size for size in space))
        g.add("DepthToSpace", [name], shape, blocksize=2, mode=g.of("DCR", "CRD"))
    elif c <= 6 and all(size % 2 == 0 for size in space):
        g.add("SpaceToDepth", [name], (n, 4 * c, *(size // 2 for size in space)), blocksize=2)


def scattered(g: Growth) -> None:
    """Places along the last axis that are put or added into those of another value, or of the same one."""
    name, shape = g.pick(3)
    others = [v for v, s in g.values if s == shape]
    kind, rng = g.of("none", "add", "add", "max", "min"), np.random.default_rng(g.seed())
    once = np.argsort(rng.random(shape), -1)  # which of several at one place comes last is not said
    places = once if kind == "none" else rng.integers(0, shape[-1], shape)
    data, updates = name, g.of(*others)
    normalised = g.of(True, False)
    if normalised:
        data, updates = (same_size_conv(g, name, shape, 1) for _ in range(2))
    inputs = [data, g.tensor(places), updates]
    put = g.add("ScatterElements", inputs, shape, axis=len(shape) - 1, reduction=kind)
    if normalised:
        normalise(g, put, shape)


def recurrent(g: Growth) -> None:
    """A recurrent layer over the positions, with ``[N, C, L]`` out."""
    name, (n, c, *space) = g.pick(3)
    size, kind = math.prod(space), g.of("RNN", "GRU")
    if size > 12 or not g.wide:
        return
    if g.of(True, False):
        name = normalise(g, g.add("Sigmoid", [name], (n, c, *space)), (n, c, *space))
    rows = g.add("Reshape", [name, g.tensor(np.int64([0, c, size]))], (n, c, size))
    steps = g.add("Transpose", [rows], (size, n, c), perm=[2, 0, 1])
    gates = {"RNN": 1, "GRU": 3}[kind]
    weights = [g.weight(1, gates * c, c, fan=c) for _ in range(2)]
    if g.of(True, False):
        weights.append(g.weight(1, 2 * gates * c, fan=1))
    states = g.add(kind, [steps, *weights], (size, 1, n, c), hidden_size=c)
    plain = g.add("Reshape", [states, g.tensor(np.int64([size, -1, c]))], (size, n, c))
    g.add("Transpose", [plain], (n, c, size), perm=[1, 2, 0])


def parallel(g: Growth) -> None:
    """``bn(conv(x)) ± bn(conv(x))``, or with x itself or bn(x): the block of a re-parameterisable net."""
    name, shape = g.pick(3)
    branches = []
    for _ in range(2):
        kind = g.of("1", "3", "depthwise", "bn", "identity")
        last = name
        if kind in ("1", "3", "depthwise"):
            last = same_size_conv(
                g, name, shape, 1 if kind == "1" else 3, shape[1] if kind == "depthwise" else 1
            )
        branches.append(normalise(g, last, shape) if kind != "identity" else last)
    g.add(g.of("Add", "Add", "Sub"), branches, shape)


def branch(g: Growth) -> None:
    """An If whose bodies normalise, each in its own way, what they capture."""
    name, shape = g.pick(3)
    bodies = []
    for side in ("then", "else"):
        inner = Growth(g.draw, g.dtype, g.statistics, f"{g.prefix}{side}{len(g.nodes)}_", [], g.tensors)
        inner.values, inner.sets = [(name, shape)], g.sets
        last = name
        for _ in range(inner.of(1, 2, 3)):
            kind = inner.of("conv", "bn", "relu", "add")
            if kind == "conv":
                last = same_size_conv(inner, last, shape, inner.of(1, 3))
            elif kind == "bn":
                last = normalise(inner, last, shape)
            elif kind == "relu":
                last = inner.add("Relu", [last], shape)
            else:
                last = inner.add("Add", [last, name], shape)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(g.dtype))
        output = helper.make_tensor_value_info(last, kind, ["n", *shape[1:]])
        bodies.append(helper.make_graph(inner.nodes, side, [], [output]))
    flag = g.tensor(np.array(g.of(True, False)))
    g.add("If", [flag], shape, then_branch=bodies[0], else_branch=bodies[1])


STEPS: list[Callable[[Growth], None]] = [conv, conv, conv, batchnorm, batchnorm, batchnorm, activation]
STEPS += [activation, combine, combine, constant, constant, pool, pool, concat, split, cut, conv_transpose]
STEPS += [
    flatten,
    swap,
    bent,
    resize,
    pad,
    shuffle,
    product,
    reciprocal,
    instance_norm,
    attention,
    branch,
    quantised,
    computed,
    regrouped,
    scattered,
    recurrent,
]
STEPS += [preactivation, preactivation, parallel, parallel]
