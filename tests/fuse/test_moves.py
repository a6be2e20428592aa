"""Maps that move: forward, through other operators, apart, and what stops them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold
from convbn.fuse.options import FuseOptions

BOUND = 1e-5
X = {"x": [2, 6, 8, 8]}


def positive(prefix: str = "bn", seed: int = 1, channels: int = 6) -> dict[str, np.ndarray]:
    parameters = batchnorm_parameters(channels, prefix=prefix, seed=seed)
    parameters[f"{prefix}.gamma"] = np.abs(parameters[f"{prefix}.gamma"])
    return parameters


def conv(source: str, target: str, name: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, name], [target], name=name, **attributes)


def check(built: onnx.ModelProto, left: int, **options: Any) -> Folding:
    """Fold, compare, fold again; how many BatchNorms are left is the point of each test."""
    result = fold(built, options=FuseOptions(**options))
    assert result.report.batchnorm.after == left, result.report.kept
    assert operators(result.model).count("BatchNormalization") == left
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {
        value.name: random(*[d.dim_value or 3 for d in value.type.tensor_type.shape.dim], seed=7)
        for value in built.graph.input
    }
    assert relative_error(run(built, feeds), run(result.model, feeds)) < BOUND
    assert not fold(result.model, options=FuseOptions(**options)).report.folded
    return result


def reason(result: Folding) -> str:
    (kept,) = result.report.kept
    return str(kept.reason)


# --- forward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_forward_into_an_unpadded_conv(groups: int) -> None:
    nodes = [batchnorm("x", "n"), conv("n", "y", "w", group=groups, strides=[2, 2])]
    check(model(nodes, X, ["y"], {"w": random(6, 6 // groups, 3, 3), **batchnorm_parameters(6)}), 0)


def test_forward_into_a_padded_conv_stays() -> None:
    nodes = [batchnorm("x", "n"), conv("n", "y", "w", pads=[1] * 4)]
    result = check(model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}), 1)
    assert "zeros around" in result.report.kept[0].detail


def test_a_scale_alone_goes_forward_into_a_padded_conv() -> None:
    parameters = batchnorm_parameters(6)
    parameters["bn.beta"][:] = 0
    parameters["bn.mean"][:] = 0
    nodes = [batchnorm("x", "n"), conv("n", "y", "w", pads=[1] * 4)]
    check(model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **parameters}), 0)


def test_automatic_padding_counts_as_padding() -> None:
    nodes = [batchnorm("x", "n"), conv("n", "y", "w", auto_pad="SAME_UPPER")]
    check(model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}), 1)


def test_every_reader_must_take_it() -> None:
    nodes = [batchnorm("x", "n"), conv("n", "y", "w"), helper.make_node("Sigmoid", ["n"], ["z"], name="gate")]
    result = check(model(nodes, X, ["y", "z"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}), 1)
    assert "gate" in result.report.kept[0].detail


def test_forward_stops_at_an_output() -> None:
    nodes = [batchnorm("x", "n"), conv("n", "y", "w")]
    check(model(nodes, X, ["y", "n"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}), 1)


@pytest.mark.parametrize("operation", ["Gemm", "MatMul"])
def test_forward_through_flatten_into_a_linear_layer(operation: str) -> None:
    nodes = [
        batchnorm("x", "n"),
        helper.make_node("Flatten", ["n"], ["f"]),
        helper.make_node(operation, ["f", "w"], ["y"], name="fc"),
    ]
    check(model(nodes, X, ["y"], {"w": random(6 * 64, 5), **batchnorm_parameters(6)}), 0)


def test_forward_into_a_transposed_conv_only_as_a_scale() -> None:
    up = helper.make_node("ConvTranspose", ["n", "w"], ["y"], name="up", group=2)
    initializers = {"w": random(6, 3, 3, 3), **batchnorm_parameters(6)}
    check(model([batchnorm("x", "n"), up], X, ["y"], initializers), 1)
    initializers["bn.beta"][:] = 0
    initializers["bn.mean"][:] = 0
    check(model([batchnorm("x", "n"), up], X, ["y"], initializers), 0)


def test_matmul_over_a_sequence_passes_the_constant_on() -> None:
    """``[N, L, C]``: no place for a bias, but the next addition is one."""
    rest = [
        helper.make_node("MatMul", ["s", "w"], ["m"], name="fc"),
        helper.make_node("Add", ["m", "b"], ["y"], name="bias"),
    ]
    initializers = {"w": random(6, 6), "b": random(6), **batchnorm_parameters(6)}
    over_the_sequence = [batchnorm("x", "s"), *rest]
    check(model(over_the_sequence, {"x": [2, 6, 6]}, ["y"], initializers), 1)
    over_the_features = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        batchnorm("t", "n"),
        helper.make_node("Transpose", ["n"], ["s"], perm=[0, 2, 1]),
        *rest,
    ]
    result = check(model(over_the_features, {"x": [2, 6, 6]}, ["y"], initializers), 0)
    assert operators(result.model) == ["Transpose", "Transpose", "MatMul", "Add"]


# --- through other operators -------------------------------------------------------------------------


def test_backward_through_concat() -> None:
    nodes = [
        conv("x", "a", "wa"),
        conv("x", "b", "wb"),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        batchnorm("c", "y"),
    ]
    initializers = {"wa": random(2, 6, 3, 3), "wb": random(4, 6, 3, 3, seed=2), **batchnorm_parameters(6)}
    check(model(nodes, X, ["y"], initializers), 0)


def test_concat_with_an_input_stays() -> None:
    nodes = [
        conv("x", "a", "wa", pads=[1] * 4),
        helper.make_node("Concat", ["a", "x"], ["c"], axis=1),
        batchnorm("c", "y"),
    ]
    check(model(nodes, X, ["y"], {"wa": random(2, 6, 3, 3), **batchnorm_parameters(8)}), 1)


@pytest.mark.parametrize("operation", ["Add", "Sub"])
def test_backward_through_a_sum(operation: str) -> None:
    nodes = [
        conv("x", "a", "wa"),
        conv("x", "b", "wb", pads=[0] * 4),
        helper.make_node(operation, ["a", "b"], ["c"]),
        batchnorm("c", "y"),
    ]
    initializers = {"wa": random(6, 6, 3, 3), "wb": random(6, 6, 3, 3, seed=2), **batchnorm_parameters(6)}
    check(model(nodes, X, ["y"], initializers), 0)


def test_a_sum_broadcast_along_the_channels_stays() -> None:
    nodes = [
        conv("x", "a", "wa"),
        conv("x", "b", "wb"),
        helper.make_node("Add", ["a", "b"], ["c"]),
        batchnorm("c", "y"),
    ]
    initializers = {"wa": random(6, 6, 3, 3), "wb": random(1, 6, 3, 3, seed=2), **batchnorm_parameters(6)}
    check(model(nodes, X, ["y"], initializers), 1)


@pytest.mark.parametrize(
    ("pool", "attributes", "left"),
    [
        ("AveragePool", {"kernel_shape": [2, 2]}, 0),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 0}, 0),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, 1),
        ("GlobalAveragePool", {}, 0),
        ("MaxPool", {"kernel_shape": [2, 2]}, 1),
    ],
)
def test_backward_through_a_pool(pool: str, attributes: dict[str, Any], left: int) -> None:
    nodes = [conv("x", "a", "w"), helper.make_node(pool, ["a"], ["p"], **attributes), batchnorm("p", "y")]
    check(model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}), left)


def test_maximum_with_positive_scales() -> None:
    pool = helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[3, 3], pads=[1] * 4)
    nodes = [conv("x", "a", "w"), pool, batchnorm("p", "y")]
    check(model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **positive()}), 0)


def test_channel_shuffle_stays() -> None:
    """The reshape tears the channels apart: no single axis carries the map."""
    nodes = [
        conv("x", "a", "w"),
        helper.make_node("Reshape", ["a", "s1"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "s2"], ["c"]),
        batchnorm("c", "y"),
    ]
    shapes = {"s1": np.int64([2, 2, 3, 6, 6]), "s2": np.int64([2, 6, 6, 6])}
    result = check(model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **shapes, **batchnorm_parameters(6)}), 1)
    assert reason(result) == "axis-not-proven"


@pytest.mark.parametrize("constant", [(6, 1, 1), (1, 6, 1, 1), (1,), ()])
@pytest.mark.parametrize("operation", ["Mul", "Add", "Sub", "Div"])
def test_constants_per_channel_move_too(operation: str, constant: tuple[int, ...]) -> None:
    numbers = 1 + 0.2 * random(*constant, seed=4)
    nodes = [
        conv("x", "a", "w"),
        helper.make_node(operation, ["a", "c"], ["m"], name="m"),
        batchnorm("m", "y"),
    ]
    result = check(
        model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), "c": numbers, **batchnorm_parameters(6)}), 0
    )
    assert operators(result.model) == ["Conv"]


def test_a_constant_along_the_width_is_none_per_channel() -> None:
    """``[C]`` against NCHW lies along W; here W == C, and only the shape rule tells."""
    nodes = [conv("x", "a", "w"), helper.make_node("Mul", ["a", "c"], ["y"], name="m")]
    result = check(model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), "c": random(6)}), 0)
    assert operators(result.model) == ["Conv", "Mul"]


# --- through activations and apart ---------------------------------------------------------------------


def block(i: int, source: str, target: str) -> list[onnx.NodeProto]:
    """``target = source + conv(relu(bn(source)))``."""
    return [
        batchnorm(source, f"n{i}", prefix=f"bn{i}"),
        helper.make_node("Relu", [f"n{i}"], [f"r{i}"], name=f"relu{i}"),
        conv(f"r{i}", f"c{i}", f"w{i}", pads=[1] * 4),
        helper.make_node("Add", [source, f"c{i}"], [target], name=f"add{i}"),
    ]


def preactivation(gammas: Any, blocks: int = 3) -> onnx.ModelProto:
    """A stem, some blocks and a last BatchNorm: the shape of a pre-activation ResNet."""
    nodes = [conv("x", "h0", "stem")]
    initializers = {"stem": random(6, 6, 1, 1)}
    for i in range(blocks):
        nodes += block(i, f"h{i}", f"h{i + 1}")
        initializers |= {f"w{i}": 0.2 * random(6, 6, 3, 3, seed=i), **gammas(f"bn{i}", i)}
    last = f"bn{blocks}"
    nodes += [
        batchnorm(f"h{blocks}", "last", prefix=last),
        helper.make_node("Relu", ["last"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["y"]),
    ]
    return model(nodes, X, ["y"], {**initializers, "fc": random(6, 4), **gammas(last, blocks)})


def test_residual_stream() -> None:
    """Every BatchNorm leaves the stream: shifts become bookkeeping, scales pass the ReLUs."""
    check(preactivation(positive), 0)


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("observed", [False, True])
def test_a_stream_of_three_hundred_blocks(observed: bool, signed: bool) -> None:
    """Far longer than Python's stack is deep; observed at its end, so that nothing can simply go through."""

    def gammas(prefix: str, i: int) -> dict[str, np.ndarray]:
        return batchnorm_parameters(6, prefix=prefix, seed=i) if signed else positive(prefix, i)

    built = preactivation(gammas, blocks=300)
    if observed:
        built.graph.output.append(helper.make_tensor_value_info("h300", TensorProto.FLOAT, [2, 6, 8, 8]))
    report = fold(built).report
    assert report.batchnorm.before == 301
    assert signed or report.batchnorm.after <= 1


def test_residual_stream_with_one_sign_a_channel() -> None:
    """Channel 2 is negative in every BatchNorm: turning its sign on the stream makes all of them positive."""

    def gammas(prefix: str, i: int) -> dict[str, np.ndarray]:
        parameters = positive(prefix, i)
        parameters[f"{prefix}.gamma"][2] *= -1
        return parameters

    check(preactivation(gammas), 0)


def test_residual_stream_with_negative_scales_stays() -> None:
    def gammas(prefix: str, i: int) -> dict[str, np.ndarray]:
        parameters = positive(prefix, i)
        parameters[f"{prefix}.gamma"][i] *= -1
        return parameters

    result = check(preactivation(gammas), 3)
    assert all("positive" in kept.detail for kept in result.report.kept)


def test_residual_stream_that_is_observed_keeps_its_value() -> None:
    built = preactivation(positive)
    built.graph.output.append(helper.make_tensor_value_info("h1", TensorProto.FLOAT, [2, 6, 8, 8]))
    result = fold(built)
    feeds = {"x": random(2, 6, 8, 8, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < BOUND
    assert "bn1" in {kept.name for kept in result.report.kept}


def test_a_shift_that_would_drown_the_stream_stays() -> None:
    """γ = 0.001 and β = 1 make a shift of a thousand standard deviations: exact, and without digits.

    The last one goes: its output is all that is left of the stream, so nothing is put on and taken off.
    """

    def gammas(prefix: str, i: int) -> dict[str, np.ndarray]:
        parameters = positive(prefix, i)
        parameters[f"{prefix}.gamma"][:] = 1e-3
        parameters[f"{prefix}.beta"][:] = 1
        return parameters

    check(preactivation(gammas), 3)


def test_sum_of_a_value_and_its_own_map() -> None:
    """``bn(c) + c``: compensating the sum would have to go through the BatchNorm that is leaving."""
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="up"),
        batchnorm("c", "n", prefix="bn1"),
        helper.make_node("Add", ["n", "c"], ["s"], name="sum"),
        batchnorm("s", "y", prefix="bn2"),
    ]
    initializers = {
        "w": random(6, 6, 2, 2),
        **batchnorm_parameters(6, prefix="bn1"),
        **batchnorm_parameters(6, prefix="bn2", seed=3),
    }
    built = model(nodes, X, ["y"], initializers)
    feeds = {"x": random(2, 6, 8, 8, seed=7)}
    assert relative_error(run(built, feeds), run(fold(built).model, feeds)) < BOUND


def test_dense_connections_stay() -> None:
    """Two BatchNorms with different scales read the same features, a ReLU behind each: DenseNet's 62."""
    nodes = [
        conv("x", "f0", "w0"),
        batchnorm("f0", "n1", prefix="bn1"),
        helper.make_node("Relu", ["n1"], ["r1"]),
        conv("r1", "f1", "w1"),
        helper.make_node("Concat", ["f0", "f1"], ["c"], axis=1),
        batchnorm("c", "n2", prefix="bn2"),
        helper.make_node("Relu", ["n2"], ["y"]),
    ]
    initializers = {
        "w0": random(6, 6, 1, 1),
        "w1": random(6, 6, 1, 1, seed=2),
        **batchnorm_parameters(6, prefix="bn1"),
        **batchnorm_parameters(12, prefix="bn2", seed=3),
    }
    result = fold(model(nodes, X, ["y"], initializers))
    assert {str(kept.reason) for kept in result.report.kept} == {"several-readers"}


@pytest.mark.parametrize("name", ["batchnorm-forward", "batchnorm-into-conv"])
def test_ways_can_be_switched_off(name: str) -> None:
    nodes = [batchnorm("x", "n"), conv("n", "y", "w")]
    check(model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}), 1, skip=(name,))


# --- signs on a residual stream ---------------------------------------------------------------------


def stream(first: np.ndarray, second: np.ndarray) -> onnx.ModelProto:
    """Two BatchNorms with these γ read a stream, each in front of a ReLU."""
    nodes = [
        conv("x", "c", "w0", pads=[1] * 4),
        batchnorm("c", "n1", prefix="bn1"),
        helper.make_node("Relu", ["n1"], ["r1"]),
        conv("r1", "d", "w1", pads=[1] * 4),
        helper.make_node("Add", ["c", "d"], ["h"]),
        batchnorm("h", "n2", prefix="bn2"),
        helper.make_node("Relu", ["n2"], ["r2"]),
        conv("r2", "y", "w2", pads=[1] * 4),
    ]
    parameters = {
        **{f"w{i}": random(6, 6, 3, 3, seed=i) for i in range(3)},
        **batchnorm_parameters(6, prefix="bn1", seed=1),
        **batchnorm_parameters(6, prefix="bn2", seed=2),
    }
    parameters["bn1.gamma"], parameters["bn2.gamma"] = first.astype("f4"), second.astype("f4")
    return model(nodes, X, ["y"], parameters)


SIGNS = np.array([1.5, -0.7, 0.8, -1.2, 1.1, -0.9])


def test_signs_that_agree_move_onto_the_stream() -> None:
    check(stream(SIGNS, 2 * SIGNS), 0)


def test_of_signs_that_disagree_one_side_stays() -> None:
    result = check(stream(SIGNS, SIGNS[::-1]), 1)
    assert "lets a positive scale through" in result.report.kept[0].detail


def test_a_zero_among_the_signs_stays() -> None:
    check(stream(np.where(SIGNS > 1.4, 0, SIGNS), SIGNS), 1)


def test_what_is_said_of_a_constant_that_changes_its_shape_goes() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "factor"], ["m"]),
        helper.make_node("Add", ["m", "one"], ["d"]),
        conv("d", "y", "w", pads=[1] * 4),
    ]
    constants = {"factor": random(6, 1, 1), "one": random(1, seed=2), "w": random(6, 6, 3, 3)}
    built = model(nodes, X, ["y"], constants)
    built.graph.value_info.append(helper.make_tensor_value_info("one", TensorProto.FLOAT, [1]))
    result = check(built, 0)
    assert operators(result.model) == ["Sigmoid", "Add", "Conv"]
    assert {tuple(t.dims) for t in result.model.graph.initializer} == {(6, 1, 1), (6, 6, 3, 3)}


# --- backward through pieces ------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_behind_a_piece_of_a_split_only_its_channels_change(piece: int) -> None:
    pieces = ["p0", "p1", "p2"]
    nodes = [
        conv("x", "c", "w", pads=[1] * 4),
        helper.make_node("Split", ["c", "sizes"], pieces, axis=1),
        batchnorm(pieces[piece], "n"),
        helper.make_node("Sigmoid", ["n"], ["y"]),
        *(helper.make_node("Sigmoid", [p], [f"{p}.y"]) for i, p in enumerate(pieces) if i != piece),
    ]
    sizes = [3, 1, 2]
    outputs = ["y", *(f"{p}.y" for i, p in enumerate(pieces) if i != piece)]
    stored = {"sizes": np.array(sizes), "w": random(6, 6, 3, 3), **batchnorm_parameters(sizes[piece])}
    check(model(nodes, X, outputs, stored), 0)


def test_behind_a_slice_only_its_channels_change() -> None:
    nodes = [
        conv("x", "c", "w", pads=[1] * 4),
        helper.make_node("Slice", ["c", "two", "five", "one"], ["s"]),
        batchnorm("s", "n"),
        helper.make_node("Sigmoid", ["n"], ["y"]),
    ]
    bounds = {"one": np.array([1]), "two": np.array([2]), "five": np.array([5])}
    check(model(nodes, X, ["y"], {**bounds, "w": random(6, 6, 3, 3), **batchnorm_parameters(3)}), 0)


def test_a_slice_beside_another_reader_of_those_channels_stays() -> None:
    nodes = [
        conv("x", "c", "w", pads=[1] * 4),
        helper.make_node("Slice", ["c", "two", "five", "one"], ["s"]),
        batchnorm("s", "n"),
        helper.make_node("Sigmoid", ["n"], ["y"]),
        helper.make_node("Sigmoid", ["c"], ["z"]),
    ]
    bounds = {"one": np.array([1]), "two": np.array([2]), "five": np.array([5])}
    check(model(nodes, X, ["y", "z"], {**bounds, "w": random(6, 6, 3, 3), **batchnorm_parameters(3)}), 1)
