"""Exact rewrites that convbn does not make, timed against what it leaves: ``make forms``.

Both forms of each run in onnxruntime on the CPU with all its optimisations on and one thread, in turns. The ratio is
the rewritten form over the one that is left, the median over rounds, with a 95 % bootstrap interval; above 1 the
rewrite is slower.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE, ROUNDS, CALLS = 128, 56, 60, 3
LARGE = 3e38

Form = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]


def main() -> int:
    """Print the table."""
    print(f"onnxruntime {runtime_version()}, one thread; {ROUNDS} rounds\n")
    print("| rewrite | time of the rewritten form / time of the form that is left |\n| --- | ---: |")
    for name, make in FORMS.items():
        shape, left, rewritten = make()
        median, low, high = ratio(shape, left, rewritten)
        print(f"| {name} | {median:.3f} [{low:.3f}, {high:.3f}] |")
    return 0


def clip_per_channel() -> tuple[Sequence[int], Form, Form]:
    """A stream that a BatchNorm of both signs and a shortcut read."""
    rng = np.random.default_rng(0)
    gamma = rng.uniform(0.5, 1.5, CHANNELS) * rng.choice([-1, 1], CHANNELS)
    around = [
        helper.make_node("Conv", ["x", "w1"], ["stream"]),
        helper.make_node("Conv", ["r", "w2"], ["branch"]),
        helper.make_node("Add", ["stream", "branch"], ["y"]),
    ]
    weights = {name: weight(rng, CHANNELS, CHANNELS, 1) for name in ("w1", "w2")}
    left = [*batchnorm("stream", "n"), helper.make_node("Relu", ["n"], ["r"])]
    bounds = {
        "low": np.where(gamma > 0, 0, -LARGE).astype("f4").reshape(-1, 1, 1),
        "high": np.where(gamma > 0, LARGE, 0).astype("f4").reshape(-1, 1, 1),
    }
    clip = [
        helper.make_node("Max", ["stream", "low"], ["n"]),
        helper.make_node("Min", ["n", "high"], ["r"]),
    ]
    shape = (1, CHANNELS, SIZE, SIZE)
    head, *tail = around
    return (
        shape,
        ([head, *left, *tail], {**weights, **statistics(rng, gamma)}),
        ([head, *clip, *tail], {**weights, **bounds}),
    )


def map_for_bias() -> tuple[Sequence[int], Form, Form]:
    """A BatchNorm behind a GELU and in front of a padded depthwise convolution, as in ConvMixer."""
    rng = np.random.default_rng(1)
    weights = {"w": weight(rng, CHANNELS, 1, 3)}
    gelu = helper.make_node("Gelu", ["x"], ["g"])
    conv = {"pads": [1] * 4, "group": CHANNELS}
    left = [gelu, *batchnorm("g", "n"), helper.make_node("Conv", ["n", "w"], ["y"], **conv)]
    added = [
        gelu,
        helper.make_node("Conv", ["g", "w"], ["c"], **conv),
        helper.make_node("Add", ["c", "map"], ["y"]),
    ]
    constant = rng.standard_normal((1, CHANNELS, SIZE, SIZE)).astype("f4")
    shape = (1, CHANNELS, SIZE, SIZE)
    return shape, (left, {**weights, **statistics(rng)}), (added, {**weights, "map": constant})


def layernorm_tail() -> tuple[Sequence[int], Form, Form]:
    """γ and β of a LayerNorm in the layer behind it."""
    rng = np.random.default_rng(2)
    shape = (1, 197, 192)
    product = helper.make_node("MatMul", ["n", "w"], ["y"])
    numbers = {"w": rng.standard_normal((192, 576)).astype("f4"), "g": rng.standard_normal(192).astype("f4")}
    left = [helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"]), product]
    moved = [helper.make_node("LayerNormalization", ["x", "g"], ["n"]), product]
    return shape, (left, {**numbers, "b": numbers["g"]}), (moved, {**numbers, "g": np.ones(192, "f4")})


def written_layernorm_tail() -> tuple[Sequence[int], Form, Form]:
    """The same where the LayerNorm is written out in simple operators."""
    shape, (left, numbers), _ = layernorm_tail()
    norm = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["s"]),
    ]
    tail = [
        helper.make_node("Div", ["d", "s"], ["q"]),
        helper.make_node("Mul", ["q", "g"], ["qg"]),
        helper.make_node("Add", ["qg", "b"], ["n"]),
    ]
    without = [helper.make_node("Div", ["d", "s"], ["n"])]
    numbers = {**numbers, "two": np.array(2, "f4"), "eps": np.array(1e-5, "f4")}
    product = left[-1]
    return shape, ([*norm, *tail, product], numbers), ([*norm, *without, product], numbers)


def pixel_shuffle() -> tuple[Sequence[int], Form, Form]:
    """A BatchNorm in front of a transposed convolution whose kernel is its stride, which has no bias for each place."""
    rng = np.random.default_rng(5)
    shape = (1, CHANNELS, SIZE // 2, SIZE // 2)
    bend = helper.make_node("Sigmoid", ["x"], ["s"])
    numbers = rng.standard_normal((CHANNELS, CHANNELS // 2, 2, 2)).astype("f4")
    left = [bend, *batchnorm("s", "n"), helper.make_node("ConvTranspose", ["n", "w"], ["y"], strides=[2, 2])]
    places = np.ascontiguousarray(numbers.reshape(CHANNELS, -1).T.reshape(-1, CHANNELS, 1, 1))
    shuffled = [
        bend,
        helper.make_node("Conv", ["s", "w", "b"], ["c"]),
        helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD"),
    ]
    bias = rng.standard_normal(len(places)).astype("f4")
    return shape, (left, {"w": numbers, **statistics(rng)}), (shuffled, {"w": places, "b": bias})


def channel_of_ones() -> tuple[Sequence[int], Form, Form]:
    """A BatchNorm between a ReLU and a padded convolution; its shift in the weights of one more channel, which is 1."""
    rng = np.random.default_rng(6)
    shape = (1, CHANNELS, SIZE // 2, SIZE // 2)
    ends = {name: weight(rng, CHANNELS, CHANNELS, 3) for name in ("w1", "w2")}
    bias = rng.standard_normal(CHANNELS).astype("f4")
    more = {
        "w1": np.concatenate([ends["w1"], np.zeros((1, CHANNELS, 3, 3), "f4")]),
        "w2": np.concatenate([ends["w2"], weight(rng, CHANNELS, 1, 3)], axis=1),
        "b": np.append(bias, np.float32(1)),
    }
    front = [
        helper.make_node("Conv", ["x", "w1", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
    ]
    left = [*front, *batchnorm("r", "n"), helper.make_node("Conv", ["n", "w2"], ["y"], pads=[1] * 4)]
    wider = [*front, helper.make_node("Conv", ["r", "w2"], ["y"], pads=[1] * 4)]
    return shape, (left, {**ends, "b": bias, **statistics(rng)}), (wider, more)


FORMS: dict[str, Callable[[], tuple[Sequence[int], Form, Form]]] = {
    "a clip for every channel, for a BatchNorm of both signs and a ReLU": clip_per_channel,
    "a map in place of a bias, for a BatchNorm in front of a padded convolution": map_for_bias,
    "γ and β of a LayerNorm in the next layer": layernorm_tail,
    "the same, LayerNorm written out in simple operators": written_layernorm_tail,
    "a ConvTranspose whose kernel is its stride as Conv and DepthToSpace, for a BatchNorm in front": pixel_shuffle,
    "a channel of ones that takes a shift into a padded convolution, for a BatchNorm behind a ReLU": channel_of_ones,
}


def batchnorm(source: str, target: str) -> list[onnx.NodeProto]:
    """One node; its statistics are :func:`statistics`."""
    return [helper.make_node("BatchNormalization", [source, "gamma", "beta", "mean", "var"], [target])]


def statistics(rng: np.random.Generator, gamma: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Parameters of a BatchNorm."""
    drawn = rng.uniform(0.5, 1.5, (2, CHANNELS)).astype("f4")
    shifts = rng.standard_normal((2, CHANNELS)).astype("f4")
    scale = drawn[0] if gamma is None else gamma.astype("f4")
    return {"gamma": scale, "var": drawn[1], "beta": shifts[0], "mean": shifts[1]}


def weight(rng: np.random.Generator, outputs: int, inputs: int, kernel: int) -> np.ndarray:
    """Of a convolution that keeps the size of its data."""
    numbers = rng.standard_normal((outputs, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2)
    return numbers.astype("f4")


def ratio(shape: Sequence[int], left: Form, rewritten: Form) -> tuple[float, float, float]:
    """Median of paired ratios and its interval."""
    x = np.random.default_rng(3).standard_normal(shape).astype("f4")
    sessions = [session(shape, *form) for form in (left, rewritten)]
    ratios = []
    for turn in range(ROUNDS):
        seconds = [0.0, 0.0]
        for index in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(CALLS):
                sessions[index].run(None, {"x": x})
            seconds[index] = time.perf_counter() - start
        ratios.append(seconds[1] / seconds[0])
    drawn = np.random.default_rng(4).choice(ratios, (2000, ROUNDS))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def session(shape: Sequence[int], nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]):  # type: ignore[no-untyped-def]  # onnxruntime has no types
    """onnxruntime with all its optimisations and one thread."""
    import onnxruntime as ort

    graph = helper.make_graph(
        nodes,
        "form",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = 13 if any(node.op_type == "ReduceMean" for node in nodes) else 20
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runtime_version() -> str:
    """Of onnxruntime."""
    import onnxruntime

    return str(onnxruntime.__version__)


if __name__ == "__main__":
    sys.exit(main())
