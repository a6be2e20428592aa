"""Random graphs: whatever is folded is equal, whatever stays has a reason, and a second run changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from support.graphs import batchnorm_parameters, model, random, relative_error, run

from convbn.fuse.fold import fold

BOUND = 1e-4
"""Far above the rounding of a few layers in float32 (1e-6), far below the effect of any wrong fold (1e-2)."""


@dataclass
class Growth:
    """A graph as it grows: the values that may be read, with their shapes."""

    draw: Any
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    values: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def pick(self, rank: int | None = None) -> tuple[str, tuple[int, ...]]:
        # Mostly the newest value, so that chains form; sometimes an older one, so that they branch.
        fitting = [v for v in self.values if rank is None or len(v[1]) == rank] or self.values
        index = self.draw(st.sampled_from([-1, -1, -1, *range(len(fitting))]))
        return fitting[index]

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        self.values.append((name, shape))
        return name

    def tensor(self, array: np.ndarray) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return name

    def seed(self) -> int:
        return int(self.draw(st.integers(0, 10_000)))


def conv(g: Growth) -> None:
    name, (n, c, h, w) = g.pick(4)
    k, pad = g.draw(st.sampled_from([(1, 0), (3, 1), (3, 0), (1, 0)]))
    if min(h, w) < k:
        return
    groups = g.draw(st.sampled_from([1, 1, c, *([2] if c % 2 == 0 else [])]))
    outputs = c if groups > 1 else g.draw(st.sampled_from([4, 6]))
    inputs = [name, g.tensor(random(outputs, c // groups, k, k, seed=g.seed()) / np.sqrt(c * k * k / groups))]
    if g.draw(st.booleans()):
        inputs.append(g.tensor(random(outputs, seed=g.seed())))
    size = h + 2 * pad - k + 1
    g.add("Conv", inputs, (n, outputs, size, size), pads=[pad] * 4, group=groups)


def conv_transpose(g: Growth) -> None:
    name, (n, c, h, w) = g.pick(4)
    groups = g.draw(st.sampled_from([1, 2] if c % 2 == 0 else [1]))
    weight = g.tensor(random(c, c // groups, 2, 2, seed=g.seed()) / np.sqrt(c))
    g.add("ConvTranspose", [name, weight], (n, c, h + 1, w + 1), group=groups)


def batchnorm(g: Growth) -> None:
    normalise(g, *g.pick())


def normalise(g: Growth, name: str, shape: tuple[int, ...]) -> str:
    parameters = batchnorm_parameters(shape[1], seed=g.seed())
    if g.draw(st.booleans()):
        parameters["bn.gamma"] = np.abs(parameters["bn.gamma"])
    return g.add("BatchNormalization", [name, *map(g.tensor, parameters.values())], shape)


def activation(g: Growth) -> None:
    name, shape = g.pick()
    g.add(g.draw(st.sampled_from(["Relu", "Relu", "LeakyRelu", "Sigmoid", "Identity"])), [name], shape)


def combine(g: Growth) -> None:
    name, shape = g.pick()
    others = [v for v, s in g.values if s == shape]
    operation = g.draw(st.sampled_from(["Add", "Add", "Add", "Sub", "Mul"]))
    g.add(operation, [name, g.draw(st.sampled_from(others))], shape)


def constant(g: Growth) -> None:
    name, shape = g.pick()
    c = shape[1]
    ones = [1] * (len(shape) - 2)
    form = g.draw(st.sampled_from([(c, *ones), (1, c, *ones), (), (1,), (shape[-1],)]))
    numbers = g.tensor(1 + 0.3 * random(*form, seed=g.seed()))
    inputs = [name, numbers] if g.draw(st.booleans()) else [numbers, name]
    operation = g.draw(st.sampled_from(["Add", "Mul", "Sub"]))
    g.add(operation, inputs, shape)


def pool(g: Growth) -> None:
    name, (n, c, h, w) = g.pick(4)
    if min(h, w) < 3:
        return
    pad = g.draw(st.sampled_from([0, 1]))
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [pad] * 4}
    operation = g.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    if operation == "AveragePool":
        attributes["count_include_pad"] = g.draw(st.sampled_from([0, 1]))
    size = h + 2 * pad - 2
    g.add(operation, [name], (n, c, size, size), **attributes)


def concat(g: Growth) -> None:
    name, shape = g.pick(4)
    others = [(v, s) for v, s in g.values if len(s) == 4 and s[2:] == shape[2:] and s[1] + shape[1] <= 12]
    if not others:
        return
    other, other_shape = g.draw(st.sampled_from(others))
    g.add("Concat", [name, other], (shape[0], shape[1] + other_shape[1], *shape[2:]), axis=1)


def split(g: Growth) -> None:
    name, (n, c, h, w) = g.pick(4)
    if c % 2:
        return
    first, second = f"v{len(g.nodes)}a", f"v{len(g.nodes)}b"
    g.nodes.append(
        helper.make_node(
            "Split", [name], [first, second], name=f"Split_{len(g.nodes)}", axis=1, num_outputs=2
        )
    )
    g.values += [(first, (n, c // 2, h, w)), (second, (n, c // 2, h, w))]


def flatten(g: Growth) -> None:
    name, shape = g.pick(4)
    size = int(np.prod(shape[1:]))
    if size > 300:
        return
    flat = g.add("Flatten", [name], (shape[0], size))
    weight = g.tensor(random(size, 6, seed=g.seed()) / np.sqrt(size))
    if g.draw(st.booleans()):
        g.add("Gemm", [flat, weight, g.tensor(random(6, seed=g.seed()))], (shape[0], 6))
    else:
        g.add("MatMul", [flat, weight], (shape[0], 6))


def preactivation(g: Growth) -> None:
    """``x + conv(relu(bn(x)))``: the block of a pre-activation ResNet, with γ of one sign or both."""
    name, (n, c, h, w) = g.pick(4)
    normed = normalise(g, name, (n, c, h, w))
    active = g.add(g.draw(st.sampled_from(["Relu", "LeakyRelu"])), [normed], (n, c, h, w))
    k = g.draw(st.sampled_from([1, 3]))
    weight = g.tensor(random(c, c, k, k, seed=g.seed()) / np.sqrt(c * k * k))
    branch = g.add("Conv", [active, weight], (n, c, h, w), pads=[k // 2] * 4)
    operation = g.draw(st.sampled_from(["Add", "Add", "Sub"]))
    inputs = [name, branch] if g.draw(st.booleans()) else [branch, name]
    g.add(operation, inputs, (n, c, h, w))


def parallel(g: Growth) -> None:
    """``bn(conv(x)) ± bn(conv(x))``, or with x itself or bn(x): the block of a re-parameterisable net."""
    name, (n, c, h, w) = g.pick(4)
    branches = []
    for _ in range(2):
        kind = g.draw(st.sampled_from(["1", "3", "depthwise", "bn", "identity"]))
        last = name
        if kind in ("1", "3", "depthwise"):
            k, groups = (1 if kind == "1" else 3), (c if kind == "depthwise" else 1)
            weight = g.tensor(random(c, c // groups, k, k, seed=g.seed()) / np.sqrt(c * k * k / groups))
            last = g.add("Conv", [name, weight], (n, c, h, w), pads=[k // 2] * 4, group=groups)
        if kind != "identity":
            last = normalise(g, last, (n, c, h, w))
        branches.append(last)
    g.add(g.draw(st.sampled_from(["Add", "Add", "Sub"])), branches, (n, c, h, w))


def swap(g: Growth) -> None:
    """``[N, C, H, W] → [N, H·W, C]``, a linear layer over C, and back."""
    name, (n, c, h, w) = g.pick(4)
    rows = g.add("Reshape", [name, g.tensor(np.int64([n, c, h * w]))], (n, c, h * w))
    last = g.add("Transpose", [rows], (n, h * w, c), perm=[0, 2, 1])
    if g.draw(st.booleans()):
        last = g.add("MatMul", [last, g.tensor(random(c, c, seed=g.seed()) / np.sqrt(c))], (n, h * w, c))
    back = g.add("Transpose", [last], (n, c, h * w), perm=[0, 2, 1])
    g.add("Reshape", [back, g.tensor(np.int64([n, c, h, w]))], (n, c, h, w))


STEPS = [conv, conv, conv, batchnorm, batchnorm, batchnorm, activation, activation, combine, combine]
STEPS += [constant, constant, pool, pool, concat, split, conv_transpose, flatten, swap]
STEPS += [preactivation, preactivation, preactivation, parallel, parallel]


@st.composite
def graphs(draw: Any) -> onnx.ModelProto:
    g = Growth(draw)
    g.values.append(("x", (2, 4, 6, 6)))
    for _ in range(draw(st.integers(3, 12))):
        draw(st.sampled_from(STEPS))(g)
    if not g.nodes:
        batchnorm(g)
    read = {name for node in g.nodes for name in node.input}
    outputs = [name for name, _ in g.values if name not in read and name != "x"]
    if draw(st.booleans()):
        outputs.append(draw(st.sampled_from([name for name, _ in g.values[1:]])))
    return model(g.nodes, {"x": [2, 4, 6, 6]}, list(dict.fromkeys(outputs)), g.tensors)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_equal_or_kept(built: onnx.ModelProto) -> None:
    before = built.SerializeToString(deterministic=True)
    result = fold(built)
    assert built.SerializeToString(deterministic=True) == before
    report = result.report
    assert report.batchnorm.before == sum(node.op_type == "BatchNormalization" for node in built.graph.node)
    assert report.batchnorm.after == sum(
        node.op_type == "BatchNormalization" for node in result.model.graph.node
    )
    names = [entry.name for entry in (*report.folded, *report.kept)]
    assert len(names) == len(set(names)) == report.batchnorm.before
    assert all(entry.detail for entry in report.kept)
    assert report.nodes.after <= report.nodes.before
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {"x": random(2, 4, 6, 6, seed=1)}
    reference = run(built, feeds)
    if all(np.abs(array).max() > 0 for array in reference):
        assert relative_error(reference, run(result.model, feeds)) < BOUND
    again = fold(result.model)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
