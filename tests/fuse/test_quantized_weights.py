"""Weights behind DequantizeLinear: the integers stay integers, or nothing happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold

X = {"x": [2, 4, 6, 6]}


def integers(*shape: int, low: int = -127, dtype: Any = np.int8) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 127, shape).astype(dtype)


def dequantize(*inputs: str, target: str = "w", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", list(inputs), [target], name=f"dq.{target}", **attributes)


def build(nodes: list[onnx.NodeProto], parameters: dict[str, np.ndarray]) -> onnx.ModelProto:
    scales = np.random.default_rng(1).uniform(0.01, 0.02, 6).astype("f4")
    return model(
        nodes, X, ["y"], {"q": integers(6, 4, 3, 3), "s": scales, **batchnorm_parameters(6), **parameters}
    )


def check(built: onnx.ModelProto, left: int, *, shaped: bool = True) -> Folding:
    result = fold(built)
    assert result.report.batchnorm.after == left, result.report.kept
    if shaped:
        onnx.checker.check_model(result.model, full_check=True)
    feeds = {"x": random(*X["x"], seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    assert "DequantizeLinear" in operators(result.model)
    return result


def tensor(built: onnx.ModelProto, node: str, slot: int) -> np.ndarray:
    (name,) = [n.input[slot] for n in built.graph.node if n.name == node]
    return numpy_helper.to_array(next(t for t in built.graph.initializer if t.name == name))


CONV = helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4)


def test_scales_take_the_magnitude_and_integers_the_sign() -> None:
    built = build([dequantize("q", "s", axis=0), CONV, batchnorm("c", "y")], {})
    result = check(built, 0)
    before, after = integers(6, 4, 3, 3), tensor(result.model, "dq.w", 0)
    assert after.dtype == np.int8
    negative = batchnorm_parameters(6)["bn.gamma"] < 0
    assert negative.any()
    assert (after[negative] == -before[negative]).all()
    assert (after[~negative] == before[~negative]).all()


def test_a_scale_of_zero_makes_the_integers_zero() -> None:
    gamma = batchnorm_parameters(6)["bn.gamma"]
    gamma[2] = 0
    result = check(build([dequantize("q", "s", axis=0), CONV, batchnorm("c", "y")], {"bn.gamma": gamma}), 0)
    assert not tensor(result.model, "dq.w", 0)[2].any()
    assert (tensor(result.model, "dq.w", 1) > 0).all()


def test_the_lowest_integer_has_no_negative() -> None:
    q = integers(6, 4, 3, 3)
    q[:, 0, 0, 0] = -128
    result = check(build([dequantize("q", "s", axis=0), CONV, batchnorm("c", "y")], {"q": q}), 1)
    assert result.report.kept[0].reason == "out-of-range"


@pytest.mark.parametrize("zero", [None, 0, 3])
@pytest.mark.parametrize("gamma", ["of both signs", "positive", "with a zero"])
def test_one_scale_for_the_whole_weight_becomes_one_a_channel(gamma: str, zero: int | None) -> None:
    changed = {"s": np.array(0.01, "f4")} | ({} if zero is None else {"z": np.array(zero, np.int8)})
    numbers = batchnorm_parameters(6)["bn.gamma"]
    if gamma != "of both signs":
        numbers = np.abs(numbers)
    if gamma == "with a zero":
        numbers[1] = 0
    node = dequantize("q", "s", *(["z"] if zero is not None else []))
    result = check(build([node, CONV, batchnorm("c", "y")], {**changed, "bn.gamma": numbers}), 0)
    assert tensor(result.model, "dq.w", 1).shape == (6,)
    if zero is not None:
        assert tensor(result.model, "dq.w", 2).shape == (6,)
        assert (tensor(result.model, "dq.w", 2) == 0).all() == (zero == 0)


def test_before_opset_13_there_is_one_scale_a_tensor() -> None:
    built = build([dequantize("q", "s"), CONV, batchnorm("c", "y")], {"s": np.array(0.01, "f4")})
    del built.opset_import[:]
    built.opset_import.append(helper.make_opsetid("", 12))
    assert "one scale for the whole weight" in check(built, 1).report.kept[0].detail


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("gamma", ["of both signs", "positive"])
def test_a_weight_that_is_quantised_as_the_model_runs(
    gamma: str, turned: bool, kind: Any, axis: int | None
) -> None:
    """Q and DQ take the same scales; with them the weight gives the same integers, their signs turned."""
    weight = random(6, 4, 3, 3, seed=5)
    scale = np.abs(weight).max((1, 2, 3) if axis is not None else None) / 127
    zero = np.full(np.shape(scale), 128 if kind is np.uint8 else 0, kind)
    if turned:
        weight = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
    where = {} if axis is None else {"axis": 3 if turned else 0}
    nodes = [
        helper.make_node("QuantizeLinear", ["fw", "s", "z"], ["q"], name="q.w", **where),
        dequantize("q", "s", "z", target="t" if turned else "w", **where),
        *([helper.make_node("Transpose", ["t"], ["w"], perm=[3, 2, 0, 1])] if turned else []),
        CONV,
        batchnorm("c", "y"),
    ]
    numbers = batchnorm_parameters(6)["bn.gamma"]
    changed = {"fw": weight, "s": np.asarray(scale, "f4"), "z": zero}
    changed["bn.gamma"] = numbers if gamma == "of both signs" else np.abs(numbers)
    built = build(nodes, changed)
    del built.graph.initializer[[t.name for t in built.graph.initializer].index("q")]
    folded = check(
        built, 0, shaped=not turned
    ).model  # onnx infers no shape past the Transpose, of either model
    label = "dq.t" if turned else "dq.w"
    assert operators(folded).count("QuantizeLinear") == 1
    assert (tensor(folded, "q.w", 1) == tensor(folded, label, 1)).all()
    assert len([t for t in folded.graph.initializer if t.dims == [6]]) == 3  # scales, zero points, bias


def test_a_weight_that_is_transposed_twice() -> None:
    nodes = [
        dequantize("q", "s", target="a", axis=0),
        helper.make_node("Transpose", ["a"], ["b"], perm=[3, 0, 1, 2]),
        helper.make_node("Transpose", ["b"], ["w"], perm=[1, 0, 2, 3]),
        CONV,
        batchnorm("c", "y"),
    ]
    check(build(nodes, {"q": integers(6, 3, 3, 4)}), 0, shaped=False)


def test_integers_that_others_read_stay() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["fw", "s", "z"], ["q8"], name="q.w", axis=0),
        dequantize("q8", "s", "z", axis=0),
        CONV,
        batchnorm("c", "n"),
        helper.make_node("Cast", ["q8"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["f"], ["top"], keepdims=0),
        helper.make_node("Add", ["n", "top"], ["y"]),
    ]
    result = check(build(nodes, {"fw": random(6, 4, 3, 3), "z": np.zeros(6, np.int8)}), 1)
    assert "are read by others" in result.report.kept[0].detail


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution(groups: int) -> None:
    nodes = [
        dequantize("q", "s", axis=1),
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="conv", strides=[2, 2], group=groups),
        batchnorm("c", "y"),
    ]
    scales = np.random.default_rng(1).uniform(0.01, 0.02, 6 // groups).astype("f4")
    result = check(build(nodes, {"q": integers(4, 6 // groups, 2, 2), "s": scales}), groups - 1)
    if groups > 1:
        assert "share the scales" in result.report.kept[0].detail


def in_two_groups(**axis: int) -> list[onnx.NodeProto]:
    """A transposed convolution of dequantised weights, and a BatchNorm."""
    return [
        dequantize("q", "s", **axis),
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="conv", strides=[2, 2], group=2),
        batchnorm("c", "y"),
    ]


@pytest.mark.parametrize("stored", [0, 1, None])
@pytest.mark.parametrize("negative", [False, True])
def test_a_transposed_convolution_whose_groups_have_one_output(stored: int | None, negative: bool) -> None:
    """Its scales go along the first axis of the weight, by which groups lie."""
    axis = {} if stored is None else {"axis": stored}
    nodes = in_two_groups(**axis)
    size = {None: (), 0: (4,), 1: (1,)}[stored]
    parameters = {"q": integers(4, 1, 2, 2), "s": np.full(size, 0.01, "f4"), **batchnorm_parameters(2)}
    parameters["bn.gamma"] = abs(parameters["bn.gamma"]) * (np.array([1, -1], "f4") if negative else 1)
    made = model(nodes, X, ["y"], parameters)
    assert check(made, 0).report.folded


def test_a_map_of_other_channels_than_the_groups_have_stays() -> None:
    nodes = in_two_groups(axis=1)
    parameters = {"q": integers(4, 3, 2, 2), "s": np.full(3, 0.01, "f4"), **batchnorm_parameters(5)}
    (kept,) = fold(model(nodes, X, ["y"], parameters)).report.kept
    assert (kept.reason, "share the scales" in kept.detail) == ("weight-not-constant", True)


def test_a_transposed_convolution_whose_groups_want_the_same_scales() -> None:
    nodes = in_two_groups(axis=1)
    parameters = {"q": integers(4, 3, 2, 2), "s": np.full(3, 0.01, "f4"), **batchnorm_parameters(6)}
    for name in ("bn.gamma", "bn.var"):
        parameters[name][3:] = parameters[name][:3]
    check(build(nodes, parameters), 0)


def test_scales_of_blocks() -> None:
    nodes = [
        dequantize("q", "s", axis=1, block_size=2),
        CONV,
        batchnorm("c", "y"),
    ]
    scales = np.random.default_rng(1).uniform(0.01, 0.02, (6, 2, 3, 3)).astype("f4")
    built = build(nodes, {"s": scales})
    del built.opset_import[:]
    built.opset_import.append(helper.make_opsetid("", 21))
    check(built, 0)


def test_scales_along_another_axis_stay() -> None:
    q = integers(6, 6, 3, 3)
    nodes = [dequantize("q", "s", axis=1), CONV, batchnorm("c", "y")]
    built = model(
        nodes, {"x": [2, 6, 6, 6]}, ["y"], {"q": q, "s": np.full(6, 0.01, "f4"), **batchnorm_parameters(6)}
    )
    assert fold(built).report.batchnorm.after == 1


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_integers_about_a_zero_point_turn_about_it(positive: bool, stored: bool) -> None:
    gamma = batchnorm_parameters(6)["bn.gamma"]
    parameters = {
        "q": integers(6, 4, 3, 3, low=0, dtype=np.uint8),
        "z": np.full(6, 100, np.uint8),
        "bn.gamma": np.abs(gamma) if positive else gamma,
    }
    zero = ["z"] if stored else []
    result = check(build([dequantize("q", "s", *zero, axis=0), CONV, batchnorm("c", "y")], parameters), 0)
    if not positive:
        assert (tensor(result.model, "dq.w", 2)[gamma < 0] == (155 if stored else 255)).all()


def test_a_dequantized_bias_becomes_a_float() -> None:
    nodes = [
        dequantize("q", "s", axis=0),
        dequantize("qb", "sb", target="b", axis=0),
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        batchnorm("c", "y"),
    ]
    parameters = {"qb": integers(6, dtype=np.int32), "sb": np.full(6, 0.003, "f4")}
    result = check(build(nodes, parameters), 0)
    assert tensor(result.model, "conv", 2).dtype == np.float32
    assert operators(result.model).count("DequantizeLinear") == 1


def test_linear_layers_too() -> None:
    nodes = [
        dequantize("q", "s", axis=0),
        helper.make_node("Gemm", ["x", "w", "b"], ["c"], transB=1, beta=0.5),
        batchnorm("c", "y"),
    ]
    parameters = {
        "q": integers(6, 4),
        "s": np.full(6, 0.01, "f4"),
        "b": random(6),
        **batchnorm_parameters(6),
    }
    built = model(nodes, {"x": [3, 4]}, ["y"], parameters)
    result = fold(built)
    assert result.report.batchnorm.after == 0
    feeds = {"x": random(3, 4, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_activations_between_convolution_and_batchnorm_are_not_passed() -> None:
    around = {"as": np.array(0.1, "f4"), "az": np.array(0, np.int8)}
    nodes = [
        dequantize("q", "s", axis=0),
        CONV,
        helper.make_node("QuantizeLinear", ["c", "as", "az"], ["cq"]),
        dequantize("cq", "as", "az", target="cd"),
        batchnorm("cd", "y"),
    ]
    built = build(nodes, around)
    assert TensorProto.INT8 in {t.data_type for t in built.graph.initializer}
    assert fold(built).report.batchnorm.after == 1
