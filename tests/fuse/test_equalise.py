"""Equalisation: every move is exact, channels become alike, and what the rules do not let through is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from support.graphs import model, operators, random, relative_error
from support.random_graphs import graphs, shape_of
from support.reference import evaluate, fold_error

from convbn.errors import UsageError
from convbn.fuse.algebra.equalise import Consumer, best_scale, noise
from convbn.fuse.equalise import ChannelRange, equalise
from convbn.fuse.fold import fold

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def measured(built: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, ChannelRange]:
    """What each layer reads, by running the model."""
    probed = onnx.ModelProto()
    probed.CopyFrom(built)
    layers = [node for node in built.graph.node if node.op_type in LAYERS]
    made = {name for node in built.graph.node for name in node.output}
    wanted = list(dict.fromkeys(node.input[0] for node in layers if node.input[0] in made))
    outputs = [value.name for value in built.graph.output]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    names = outputs + [name for name in wanted if name not in outputs]
    values = dict(feeds) | dict(zip(names, evaluate(probed, feeds["x"]), strict=True))
    found = {}
    for node in layers:
        if node.input[0] in values and values[node.input[0]].ndim > 1:
            array = values[node.input[0]].astype(np.float64)
            axis = 1 if node.op_type.startswith("Conv") else array.ndim - 1
            others = tuple(i for i in range(array.ndim) if i != axis)
            found[node.name] = ChannelRange(np.abs(array).max(axis=others), (array**2).mean(axis=others))
    return found


def named(built: onnx.ModelProto) -> onnx.ModelProto:
    for index, node in enumerate(built.graph.node):
        node.name = node.name or f"node{index}"
    return built


def uneven(*shape: int, seed: int) -> np.ndarray:
    """Rows of very different size."""
    scale = np.exp(np.random.default_rng(seed).uniform(-3, 3, shape[0]))
    return (random(*shape, seed=seed, dtype=np.float64) * scale.reshape(-1, *[1] * (len(shape) - 1))).astype(
        np.float64
    )


def inverted_residual(activation: str = "Relu", **attributes: Any) -> onnx.ModelProto:
    """Expand, depthwise, project, twice, with a residual around the second; then a pool and a head."""
    nodes, weights = [], {}

    def conv(source: str, name: str, weight: np.ndarray, **given: Any) -> str:
        weights[f"{name}.w"], weights[f"{name}.b"] = (
            weight,
            random(len(weight), seed=len(weights), dtype=np.float64),
        )
        nodes.append(helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [name], name=name, **given))
        return name

    def bend(source: str) -> str:
        nodes.append(
            helper.make_node(activation, [source], [f"{source}.a"], name=f"{source}.act", **attributes)
        )
        return f"{source}.a"

    x = conv("x", "first", uneven(6, 3, 1, 1, seed=1))
    for block in range(2):
        y = bend(conv(x, f"expand{block}", uneven(8, 6, 1, 1, seed=10 + block)))
        y = bend(conv(y, f"depth{block}", uneven(8, 1, 3, 3, seed=20 + block), group=8, pads=[1] * 4))
        y = conv(y, f"project{block}", uneven(6, 8, 1, 1, seed=30 + block))
        if block:
            nodes.append(helper.make_node("Add", [x, y], ["sum"], name="sum"))
            y = "sum"
        x = y
    weights["head"] = random(6, 4, seed=5, dtype=np.float64)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pool"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"], name="flat"))
    nodes.append(helper.make_node("Gemm", ["flat", "head"], ["y"], name="head"))
    return model(nodes, {"x": [2, 3, 6, 6]}, ["y"], weights, elem_type=onnx.TensorProto.DOUBLE)


def doubles(built: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        "x": random(*(d.dim_value for d in built.graph.input[0].type.tensor_type.shape.dim), dtype=np.float64)
    }


def test_pairs_triples_and_a_residual_stream_are_scaled_exactly() -> None:
    built = inverted_residual()
    before, feeds = built.SerializeToString(), doubles(built)
    result = equalise(built, measured(built, feeds))
    assert built.SerializeToString() == before
    assert operators(result.model) == operators(built)
    scaled = {group.layer: group.readers for group in result.scaled}
    assert scaled["expand0"] == ("depth0",)
    assert scaled["depth0"] == ("project0",)
    # One stream: what the sum of both gives must be scaled as both are.
    assert scaled["project0"] == ("expand1", "head")
    assert relative_error(evaluate(built, feeds["x"]), evaluate(result.model, feeds["x"])) < 1e-13
    assert all(group.noise_after < 0.95 * group.noise_before for group in result.scaled)


def test_channels_become_alike() -> None:
    built = inverted_residual()
    feeds = doubles(built)

    def spread(given: onnx.ModelProto) -> float:
        largest = measured(given, feeds)["depth0"].largest
        return float(largest.max() / np.median(largest))

    result = equalise(built, measured(built, feeds))
    assert spread(result.model) < 1.5 < 3 < spread(built)


@pytest.mark.parametrize("activation", ["Sigmoid", "HardSwish", "Tanh"])
def test_no_scale_passes_another_activation(activation: str) -> None:
    built = inverted_residual(activation)
    result = equalise(built, measured(built, doubles(built)))
    assert {group.layer for group in result.scaled} <= {"first", "project0"}
    feeds = doubles(built)
    assert relative_error(evaluate(built, feeds["x"]), evaluate(result.model, feeds["x"])) < 1e-13


def test_a_leaky_relu_lets_scales_pass() -> None:
    built = inverted_residual("LeakyRelu", alpha=0.1)
    feeds = doubles(built)
    result = equalise(built, measured(built, feeds))
    assert "depth0" in {group.layer for group in result.scaled}
    assert relative_error(evaluate(built, feeds["x"]), evaluate(result.model, feeds["x"])) < 1e-13


def test_an_output_on_the_way_keeps_its_values() -> None:
    built = inverted_residual()
    built.graph.output.append(
        helper.make_tensor_value_info("expand0.a", onnx.TensorProto.DOUBLE, [2, 8, 6, 6])
    )
    feeds = doubles(built)
    result = equalise(built, measured(built, feeds))
    assert "expand0" not in {group.layer for group in result.scaled}
    assert relative_error(evaluate(built, feeds["x"]), evaluate(result.model, feeds["x"])) < 1e-13


def test_a_plain_chain_that_states_no_shapes_is_scaled() -> None:
    """As it is after a fold: no BatchNorm, no sum and no product is left in it."""
    weights = {
        "a.w": uneven(6, 3, 3, 3, seed=1), "a.b": np.zeros(6),
        "b.w": random(4, 6, 3, 3, seed=2, dtype=np.float64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a.w", "a.b"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "b.w"], ["y"], name="b"),
    ]
    built = model(nodes, {"x": [2, 3, 6, 6]}, ["y"], weights, elem_type=onnx.TensorProto.DOUBLE)
    feeds = doubles(built)
    result = equalise(built, measured(built, feeds))
    assert [(group.layer, group.readers) for group in result.scaled] == [("a", ("b",))]
    assert relative_error(evaluate(built, feeds["x"]), evaluate(result.model, feeds["x"])) < 1e-13


def test_without_ranges_nothing_moves() -> None:
    built = inverted_residual()
    result = equalise(built, {})
    assert not result.scaled
    assert result.model.SerializeToString() == built.SerializeToString()


def test_weights_of_0_and_1_are_scaled_as_others_are() -> None:
    built = inverted_residual()
    feeds = doubles(built)
    before = {group.layer: group.readers for group in equalise(built, measured(built, feeds)).scaled}
    weight = next(tensor for tensor in built.graph.initializer if tensor.name == "project0.w")
    array = numpy_helper.to_array(weight).copy()
    array[0, :2], array[1, :3] = 1, 0
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    result = equalise(built, measured(built, feeds))
    assert {group.layer: group.readers for group in result.scaled} == before
    assert relative_error(evaluate(built, feeds["x"]), evaluate(result.model, feeds["x"])) < 1e-13


def test_one_channel_beside_others_that_no_scale_reaches() -> None:
    weights = {
        "one.w": random(1, 3, 1, 1, dtype=np.float64), "both.w": random(4, 4, 1, 1, seed=1, dtype=np.float64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "one.w"], ["one"], name="one"),
        helper.make_node("Sigmoid", ["x"], ["bent"], name="bent"),
        helper.make_node("Concat", ["one", "bent"], ["all"], name="all", axis=1),
        helper.make_node("Conv", ["all", "both.w"], ["y"], name="both"),
    ]
    built = model(nodes, {"x": [2, 3, 6, 6]}, ["y"], weights, elem_type=onnx.TensorProto.DOUBLE)
    result = equalise(built, measured(built, doubles(built)))
    assert not result.scaled  # one channel alone has nothing to be made alike to
    assert result.model.SerializeToString() == built.SerializeToString()


def biased(pads: int, first: str = "Relu", second: str = "Relu") -> onnx.ModelProto:
    """A layer over what a ReLU gives, some of whose rows are never negative; its ReLU cuts off nothing there."""
    own = [] if second == "Relu" else ["zero"]
    weight = random(4, 3, 1, 1, seed=2, dtype=np.float64)
    weight[:2] = np.abs(weight[:2])
    weights = {
        "w1": random(3, 3, 1, 1, seed=1, dtype=np.float64), "w2": weight, "b2": np.array([5.0, -1, 2, 3]),
        "w3": random(2, 4, 3, 3, seed=3, dtype=np.float64), "zero": np.zeros(()),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one"),
        helper.make_node(first, ["a"], ["r"], name="relu1"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c"], name="two"),
        helper.make_node(second, ["c", *own], ["s"], name="relu2"),
        helper.make_node("Conv", ["s", "w3"], ["y"], name="three", pads=[pads] * 4),
    ]
    return model(nodes, {"x": [2, 3, 6, 6]}, ["y"], weights, elem_type=onnx.TensorProto.DOUBLE)


@pytest.mark.parametrize("second", ["Relu", "Max"])
@pytest.mark.parametrize("first", ["Relu", "Sigmoid", "Exp"])
def test_a_bias_that_no_relu_cuts_off_goes_on(first: str, second: str) -> None:
    built = biased(0, first, second)
    feeds = doubles(built)
    result = equalise(built, {})
    assert [(entry.layer, entry.channels) for entry in result.absorbed] == [("two", 1)]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    bias = next(stored[node.input[2]] for node in result.model.graph.node if node.name == "two")
    np.testing.assert_array_equal(bias, [0, -1, 2, 3])
    assert relative_error(evaluate(built, feeds["x"]), evaluate(result.model, feeds["x"])) < 1e-13


@pytest.mark.parametrize("first", ["LeakyRelu", "Tanh", "Neg", "Identity"])
def test_a_bias_stays_over_data_that_may_be_negative(first: str) -> None:
    assert not equalise(biased(0, first), {}).absorbed


def test_a_bias_stays_over_the_input() -> None:
    built = biased(0)
    del built.graph.node[:2]
    built.graph.node[0].input[0] = "x"
    assert not equalise(built, {}).absorbed


@pytest.mark.parametrize("alpha", [1.0, 0.0, -1.0])
def test_a_bias_of_a_matrix_goes_on_where_its_product_is_never_negative(alpha: float) -> None:
    weights = {
        "w1": np.abs(random(3, 4, seed=1, dtype=np.float64)), "b1": np.array([5.0, -1, 2, 3]),
        "w2": random(4, 2, seed=2, dtype=np.float64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu1"),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["a"], name="one", alpha=alpha),
        helper.make_node("Relu", ["a"], ["s"], name="relu2"),
        helper.make_node("Gemm", ["s", "w2"], ["y"], name="two"),
    ]
    built = model(nodes, {"x": [2, 3]}, ["y"], weights, elem_type=onnx.TensorProto.DOUBLE)
    result = equalise(built, {})
    assert [(entry.layer, entry.channels) for entry in result.absorbed] == [("one", 3)] * (alpha > 0)
    x = doubles(built)["x"]
    assert relative_error(evaluate(built, x), evaluate(result.model, x)) < 1e-13


def test_a_bias_does_not_go_on_under_padding() -> None:
    assert not equalise(biased(1), {}).absorbed


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(built=graphs("float64"), seed=st.integers(0, 9))
def test_random_graphs_compute_the_same(built: onnx.ModelProto, seed: int) -> None:
    """Few of them have channels to be made alike; those of the tests above do."""
    folded = named(fold(built).model)
    feeds = {"x": random(*shape_of(built), seed=seed, dtype=np.float64)}
    result = equalise(folded, measured(folded, feeds))
    error, allowed = fold_error(folded, result.model, "float64")
    assert error <= allowed


def test_the_scale_of_least_noise() -> None:
    """A channel a hundred times quieter than the others, read with equal weights: its noise is that of its step."""
    weight = np.abs(random(1, 4, 5, 1, dtype=np.float64))
    largest = np.array([1.0, 1, 1, 1, 0.01])
    consumer = Consumer(weight, largest, largest**2 / 3, np.arange(5))
    found = best_scale([consumer], 5)
    assert found is not None
    scale, before, after = found
    assert before == noise(consumer, np.ones(5)) > after == noise(consumer, scale)
    assert (scale * largest).max() == pytest.approx(1)
    assert scale[4] > 1.5 * scale[:4].max()


def test_by_hand() -> None:
    weight, largest, power = np.array([[[[2.0], [1.0]]]]), np.array([4.0, 1.0]), np.array([3.0, 0.5])
    consumer = Consumer(weight, largest, power, np.array([0, 1]))
    # (max 4, 3)²·(2² + 1/3²) + (max 2, 1/3)²·(3 + 9·0.5), over 4·3 + 0.5
    assert noise(consumer, np.array([1.0, 3.0])) == pytest.approx((16 * (4 + 1 / 9) + 4 * (3 + 4.5)) / 12.5)
    # (max 8, 1)²·(2²/2² + 1) + (max 1, 1)²·(4·3 + 0.5): the second channel has no scale of its own
    lone = Consumer(weight, largest, power, np.array([0, -1]))
    assert noise(lone, np.array([2.0, 3.0])) == pytest.approx((64 * 2 + 1 * 12.5) / 12.5)


def test_groups_by_hand() -> None:
    """Each group has its own input and two rows; all is small, and nothing is taken for 1."""
    weight = np.array([0.25, 0.5, 0.125, 0.25]).reshape(2, 2, 1, 1)
    consumer = Consumer(weight, np.array([0.25, 0.125]), np.array([0.02, 0.01]), np.arange(2))
    # (max .25, .25)²·((.25² + .5²)/1 + (.125² + .25²)/2²) + (.25² + .5²)·.02 + (.0625² + .125²)·2²·.01
    noisy = 0.0625 * (0.3125 + 0.078125 / 4) + 0.3125 * 0.02 + 0.01953125 * 0.04
    assert noise(consumer, np.array([1.0, 2.0])) == pytest.approx(noisy / (0.3125 * 0.02 + 0.078125 * 0.01))


def test_the_units_of_data_and_weights_do_not_matter() -> None:
    """Nor where a channel is empty and another is not read."""
    weight = np.abs(random(1, 4, 5, 1, dtype=np.float64))
    weight[:, :, 3] = 0
    largest = np.array([1, 0.5, 0.1, 1, 0])
    found = best_scale([Consumer(weight, largest, largest**2 / 3, np.arange(5))], 5)
    same = best_scale([Consumer(16 * weight, 64 * largest, (64 * largest) ** 2 / 3, np.arange(5))], 5)
    assert found is not None
    assert same is not None
    np.testing.assert_allclose(same[0], found[0], rtol=1e-12)
    np.testing.assert_allclose(same[1:], found[1:], rtol=1e-12)


def test_a_channel_that_no_scale_reaches_says_nothing_of_those_that_one_does() -> None:
    """The second channel is quiet; the third, which is loud, has no scale."""
    weight, largest = np.ones((1, 2, 3, 1)), np.array([1, 0.01, 1])
    found = best_scale([Consumer(weight, largest, largest**2 / 3, np.array([0, 1, -1]))], 2)
    assert found is not None
    np.testing.assert_allclose(found[0], [1, 10])  # √(w/a)


def test_a_layer_that_gives_nothing_has_no_noise() -> None:
    silent = Consumer(np.ones((1, 2, 3, 1)), np.zeros(3), np.zeros(3), np.arange(3))
    assert noise(silent, np.ones(3)) == 0


def test_nothing_to_gain() -> None:
    weight = np.ones((1, 4, 4, 1))
    assert best_scale([Consumer(weight, np.ones(4), np.ones(4), np.arange(4))], 4) is None
    with np.errstate(all="raise"):
        assert best_scale([Consumer(weight, np.zeros(4), np.zeros(4), np.arange(4))], 4) is None
        assert best_scale([Consumer(weight, np.ones(4), np.zeros(4), np.arange(4))], 4) is None
        assert best_scale([Consumer(0 * weight, np.ones(4), np.ones(4), np.arange(4))], 4) is None


def test_modules_are_sent_to_onnx() -> None:
    with pytest.raises(UsageError, match="export it to ONNX first"):
        equalise(object(), {})
