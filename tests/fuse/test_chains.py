"""Layers in a row: merged where that is exact and costs no more, else left."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold
from convbn.fuse.options import FuseOptions


def conv(source: str, target: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, *names], [target], name=names[0], **attributes)


def check(
    nodes: list[onnx.NodeProto],
    shapes: dict[str, tuple[int, ...]],
    left: int,
    x: tuple[int, ...] = (2, 4, 9, 8),
    *,
    outputs: tuple[str, ...] = ("y",),
    **options: Any,
) -> Folding:
    """Fold and compare; how many nodes are left is the point of each test."""
    numbers = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    built = onnx.shape_inference.infer_shapes(model(nodes, {"x": x}, outputs, numbers))
    result = fold(built, options=FuseOptions(**options))
    assert len(result.model.graph.node) == left, operators(result.model)
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {"x": random(*x, seed=99)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    assert not fold(result.model, options=FuseOptions(**options)).report.merged
    return result


POINT = {"w1": (8, 4, 1, 1), "w2": (6, 8, 1, 1)}


def test_two_pointwise_convolutions() -> None:
    result = check([conv("x", "c", "w1"), conv("c", "y", "w2")], POINT, 1)
    assert result.report.merged[0].rule == "merge-chain"
    assert result.report.merged[0].names == ("w1",)


def test_both_biases_become_one() -> None:
    shapes = {**POINT, "b1": (8,), "b2": (6,)}
    check([conv("x", "c", "w1", "b1"), conv("c", "y", "w2", "b2")], shapes, 1)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("second", [1, 2])
def test_a_kernel_then_a_pointwise_of_any_stride(stride: int, second: int) -> None:
    shapes = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (6, 8, 1, 1)}
    layout = {"strides": [stride] * 2, "pads": [2, 1, 0, 1], "dilations": [1, 2]}
    nodes = [conv("x", "c", "w1", "b1", **layout), conv("c", "y", "w2", strides=[second] * 2)]
    check(nodes, shapes, 1, (2, 4, 17, 16))


def test_a_pointwise_then_an_unpadded_kernel() -> None:
    shapes = {"w1": (8, 4, 1, 1), "b1": (8,), "w2": (6, 8, 3, 3)}
    check([conv("x", "c", "w1", "b1"), conv("c", "y", "w2", strides=[2, 1])], shapes, 1)


def test_a_pointwise_then_a_padded_kernel_needs_no_bias() -> None:
    shapes = {"w1": (8, 4, 1, 1), "b1": (8,), "w2": (6, 8, 3, 3)}
    check([conv("x", "c", "w1"), conv("c", "y", "w2", pads=[1] * 4)], shapes, 1)
    check([conv("x", "c", "w1", "b1"), conv("c", "y", "w2", pads=[1] * 4)], shapes, 2)


def test_a_strided_pointwise_in_front_of_a_kernel_stays() -> None:
    shapes = {"w1": (8, 4, 1, 1), "w2": (6, 8, 3, 3)}
    check([conv("x", "c", "w1", strides=[2, 2]), conv("c", "y", "w2")], shapes, 2)


def test_a_padded_pointwise_stays() -> None:
    check([conv("x", "c", "w1"), conv("c", "y", "w2", pads=[1] * 4)], {**POINT, "w2": (6, 8, 1, 1)}, 1)
    check([conv("x", "c", "w1", pads=[1] * 4), conv("c", "y", "w2", pads=[1] * 4)], POINT, 2)


def test_two_kernels_stay() -> None:
    shapes = {"w1": (8, 4, 3, 3), "w2": (6, 8, 3, 3)}
    check([conv("x", "c", "w1"), conv("c", "y", "w2")], shapes, 2)


def test_a_bottleneck_stays_because_one_layer_would_cost_more() -> None:
    check([conv("x", "c", "w1"), conv("c", "y", "w2")], {"w1": (2, 4, 1, 1), "w2": (16, 2, 1, 1)}, 2)


def test_the_same_groups() -> None:
    shapes = {"w1": (8, 2, 3, 3), "b1": (8,), "w2": (6, 4, 1, 1), "b2": (6,)}
    check([conv("x", "c", "w1", "b1", group=2), conv("c", "y", "w2", "b2", group=2)], shapes, 1)


def test_other_groups_stay() -> None:
    shapes = {"w1": (8, 2, 3, 3), "w2": (8, 2, 1, 1)}
    check([conv("x", "c", "w1", group=2), conv("c", "y", "w2", group=4)], shapes, 2)


def test_one_number_a_channel_before_and_behind() -> None:
    shapes = {"s": (4, 1, 1, 1), "t": (4,), "w": (6, 2, 3, 3), "b": (6,)}
    check([conv("x", "c", "s", "t", group=4), conv("c", "y", "w", "b", group=2)], shapes, 1)
    check([conv("x", "c", "s", "t", group=4), conv("c", "y", "w", "b", group=2, pads=[1] * 4)], shapes, 2)
    behind = {"w": (4, 2, 3, 3), "b": (4,), "s": (4, 1, 1, 1), "t": (4,)}
    nodes = [conv("x", "c", "w", "b", group=2, pads=[1] * 4), conv("c", "y", "s", "t", group=4)]
    check(nodes, behind, 1)


def test_other_readers_stop_it() -> None:
    nodes = [conv("x", "c", "w1"), conv("c", "d", "w2"), helper.make_node("Relu", ["c"], ["r"])]
    check(nodes, POINT, 3, outputs=("d", "r"))
    check([conv("x", "c", "w1"), conv("c", "y", "w2")], POINT, 2, outputs=("y", "c"))


def test_a_nonlinearity_between_stops_it() -> None:
    nodes = [conv("x", "c", "w1"), helper.make_node("Relu", ["c"], ["r"]), conv("r", "y", "w2")]
    check(nodes, POINT, 3)


def test_the_option() -> None:
    check([conv("x", "c", "w1"), conv("c", "y", "w2")], POINT, 2, skip=("merge-chain",))


def test_a_batchnorm_between_goes_first() -> None:
    nodes = [conv("x", "c", "w1"), batchnorm("c", "n"), conv("n", "y", "w2")]
    numbers = {"w1": random(8, 4, 3, 3), "w2": random(6, 8, 1, 1), **batchnorm_parameters(8)}
    built = model(nodes, {"x": [2, 4, 9, 8]}, ["y"], numbers)
    result = fold(built)
    assert operators(result.model) == ["Conv"]
    feeds = {"x": random(2, 4, 9, 8, seed=9)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_weights_out_of_range_stay() -> None:
    huge = {"w1": np.full((8, 4, 1, 1), 3e4, "f2"), "w2": np.full((6, 8, 1, 1), 3e4, "f2")}
    nodes = [conv("x", "c", "w1"), conv("c", "y", "w2")]
    built = model(nodes, {"x": [1, 4, 3, 3]}, ["y"], huge, elem_type=onnx.TensorProto.FLOAT16)
    assert len(fold(built).model.graph.node) == 2


def test_linear_layers() -> None:
    gemm = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["c"], alpha=0.5, beta=2.0, transB=1),
        helper.make_node("Gemm", ["c", "w2", "b2"], ["y"], alpha=1.5, beta=0.5),
    ]
    check(gemm, {"w1": (8, 4), "b1": (8,), "w2": (8, 6), "b2": (6,)}, 1, (3, 4))
    product = [helper.make_node("MatMul", ["x", "w1"], ["c"]), helper.make_node("MatMul", ["c", "w2"], ["y"])]
    check(product, {"w1": (4, 8), "w2": (8, 6)}, 1, (2, 3, 4))


def test_low_rank_factors_stay() -> None:
    product = [helper.make_node("MatMul", ["x", "w1"], ["c"]), helper.make_node("MatMul", ["c", "w2"], ["y"])]
    check(product, {"w1": (16, 2), "w2": (2, 16)}, 2, (2, 3, 16))


@pytest.mark.parametrize(("rank", "left"), [(7, 2), (8, 1)])
def test_factors_with_as_many_numbers_as_their_product_become_one(rank: int, left: int) -> None:
    product = [helper.make_node("MatMul", ["x", "w1"], ["c"]), helper.make_node("MatMul", ["c", "w2"], ["y"])]
    check(product, {"w1": (16, rank), "w2": (rank, 16)}, left, (2, 3, 16))


def test_a_product_without_a_place_for_the_bias_stays() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    numbers = {"w1": random(4, 8), "b1": random(8), "w2": random(8, 6), "shape": np.array([1, 3, 8])}
    built = onnx.shape_inference.infer_shapes(model(nodes, {"x": [3, 4]}, ["y"], numbers))
    assert len(fold(built).model.graph.node) == 3


def test_a_second_gemm_that_ignores_its_bias_is_merged() -> None:
    gemm = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["c"]),
        helper.make_node("Gemm", ["c", "w2", "b2"], ["y"], beta=0.0),
    ]
    check(gemm, {"w1": (4, 8), "b1": (8,), "w2": (8, 6), "b2": (6,)}, 1, (3, 4))


def test_transposed_data_stays() -> None:
    gemm = [
        helper.make_node("Gemm", ["x", "w1"], ["c"], transA=1),
        helper.make_node("Gemm", ["c", "w2"], ["y"]),
    ]
    check(gemm, {"w1": (4, 8), "w2": (8, 6)}, 2, (4, 3))


def gemm(source: str, target: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Gemm", [source, *names], [target], name=names[0], **attributes)


LAYERS = {"w1": (4, 8), "w2": (8, 6)}


@pytest.mark.parametrize("shape", [(), (1,), (8,), (1, 1), (1, 8)])
def test_every_bias_of_one_number_an_output_goes_on(shape: tuple[int, ...]) -> None:
    two = [gemm("x", "c", "w1", "b1"), gemm("c", "y", "w2")]
    check(two, {**LAYERS, "b1": shape}, 1, (3, 4))


@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 1), (1, 6)])
@pytest.mark.parametrize("first", [True, False])
def test_a_second_bias_is_added_to(shape: tuple[int, ...], first: bool) -> None:
    names = ("w1", "b1") if first else ("w1",)
    shapes = {**LAYERS, "b1": (8,), "b2": shape} if first else {**LAYERS, "b2": shape}
    check([gemm("x", "c", *names), gemm("c", "y", "w2", "b2")], shapes, 1, (3, 4))


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_either_side_may_be_transposed(transposed: tuple[int, int]) -> None:
    first, second = transposed
    shapes = {"w1": (8, 4) if first else (4, 8), "b1": (8,), "w2": (6, 8) if second else (8, 6)}
    nodes = [
        gemm("x", "c", "w1", "b1", transB=first, alpha=2.0, beta=3.0),
        gemm("c", "y", "w2", transB=second, alpha=0.5, beta=0.25),
    ]
    check(nodes, shapes, 1, (3, 4))


@pytest.mark.parametrize("shape", [(3, 8), (3, 1)])
@pytest.mark.parametrize("place", [0, 1])
def test_a_bias_for_each_row_stays(shape: tuple[int, int], place: int) -> None:
    size = shape[1] if shape[1] == 1 or not place else 6
    names = [("w1",), ("w2",)]
    names[place] = (*names[place], "b")
    nodes = [gemm("x", "c", *names[0]), gemm("c", "y", *names[1])]
    check(nodes, {**LAYERS, "b": (3, size)}, 2, (3, 4))


@pytest.mark.parametrize("place", [0, 1])
def test_a_bias_that_is_fed_stays(place: int) -> None:
    names = [["w1"], ["w2"]]
    names[place].append("b")
    nodes = [gemm("x", "c", *names[0]), gemm("c", "y", *names[1])]
    numbers = {"w1": random(4, 8), "w2": random(8, 8)}
    built = model(nodes, {"x": [3, 4], "b": [8]}, ["y"], numbers)
    assert len(fold(built).model.graph.node) == 2


def test_layers_that_do_not_fit_stay() -> None:
    """No runtime runs them; that is for it to say."""
    built = model(
        [gemm("x", "c", "w1"), gemm("c", "y", "w2")],
        {"x": [3, 4]},
        ["y"],
        {"w1": random(4, 8), "w2": random(7, 2)},
    )
    assert len(fold(built).model.graph.node) == 2


@pytest.mark.parametrize(("weight", "bias"), [(3e4, 0.0), (1.0, 6e4)])
def test_linear_numbers_out_of_range_stay(weight: float, bias: float) -> None:
    """In float16: 8·3e4 is no weight, and 8·6e4 no bias."""
    numbers = {
        "w1": np.full((4, 8), weight, "f2"),
        "b1": np.full(8, bias, "f2"),
        "w2": np.ones((8, 6), "f2"),
    }
    nodes = [gemm("x", "c", "w1", "b1"), gemm("c", "y", "w2")]
    built = model(nodes, {"x": [3, 4]}, ["y"], numbers, elem_type=onnx.TensorProto.FLOAT16)
    assert len(fold(built).model.graph.node) == 2
    numbers["w1"][:], numbers["b1"][:] = 1, 1
    assert len(fold(model(nodes, {"x": [3, 4]}, ["y"], numbers, elem_type=10)).model.graph.node) == 1


def test_a_convolution_bias_out_of_range_stays() -> None:
    numbers = {
        "w1": np.ones((8, 4, 1, 1), "f2"),
        "b1": np.full(8, 6e4, "f2"),
        "w2": np.ones((6, 8, 1, 1), "f2"),
    }
    nodes = [conv("x", "c", "w1", "b1"), conv("c", "y", "w2")]
    built = model(nodes, {"x": [1, 4, 3, 3]}, ["y"], numbers, elem_type=onnx.TensorProto.FLOAT16)
    assert len(fold(built).model.graph.node) == 2


def test_a_longer_chain_becomes_one() -> None:
    names = ["a", "b", "c", "d"]
    nodes = [conv(s, t, n) for s, t, n in zip("xpqr", "pqry", names, strict=True)]
    result = check(nodes, dict.fromkeys(names, (4, 4, 1, 1)), 1)
    assert [(m.names, m.into) for m in result.report.merged] == [(("a",), "b"), (("b",), "c"), (("c",), "d")]


def test_layers_of_two_kinds_stay() -> None:
    nodes = [
        conv("x", "c", "w1"),
        helper.make_node("MatMul", ["c", "w2"], ["y"], name="w2"),
    ]
    check(nodes, {"w1": (4, 4, 1, 1), "w2": (8, 8)}, 2)


def test_a_layer_that_reads_the_other_as_its_weight_stays() -> None:
    nodes = [helper.make_node("MatMul", ["x", "a"], ["c"]), helper.make_node("MatMul", ["b", "c"], ["y"])]
    check(nodes, {"a": (4, 4), "b": (4, 4)}, 2, (4, 4))


def test_what_is_an_output_ends_the_chain() -> None:
    """Only the two behind it become one."""
    nodes = [conv("x", "c", "w1"), conv("c", "d", "w2"), conv("d", "y", "w3")]
    result = check(nodes, {**POINT, "w3": (6, 6, 1, 1)}, 2, outputs=("y", "c"))
    assert [m.names for m in result.report.merged] == [("w2",)]


def test_a_layer_outside_a_body_stays_outside() -> None:
    """The body may not run; and what stands in front of it is not its own."""
    output = helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None)
    other = helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, None)
    then = helper.make_graph([conv("c", "t", "w2")], "then", [], [output])
    otherwise = helper.make_graph(
        [helper.make_node("Constant", [], ["e"], value_float=1.0)], "else", [], [other]
    )
    choice = helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=otherwise)
    numbers = {name: random(*shape) for name, shape in POINT.items()}
    built = model([conv("x", "c", "w1"), choice], {"x": [1, 4, 5, 5], "flag": []}, ["y"], numbers)
    built.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    assert not fold(built).report.merged


def test_a_layer_with_a_second_output_stays() -> None:
    """No convolution has one, but a file may say so, and it would go with the first."""
    nodes = [conv("x", "c", "w1"), conv("c", "y", "w2"), helper.make_node("Relu", ["c2"], ["r"])]
    nodes[0].output.append("c2")
    numbers = {name: random(*shape) for name, shape in POINT.items()}
    assert not fold(model(nodes, {"x": [1, 4, 5, 5]}, ["y"], numbers)).report.merged


@pytest.mark.parametrize("missing", [0, 1])
def test_a_layer_without_data_stays(missing: int) -> None:
    """Nor has a product, or a convolution, no data; a file may leave it out all the same."""
    for make in (conv, gemm):
        nodes = [make("x", "c", "w1"), make("c", "y", "w2")]
        nodes[missing].input[0] = ""
        numbers = {"w1": random(4, 4), "w2": random(4, 4)}
        if make is conv:
            numbers = {name: array[..., None, None] for name, array in numbers.items()}
        assert not fold(model(nodes, {"x": [1, 4, 5, 5]}, ["y"], numbers)).report.merged


def test_data_that_is_known_stays_where_it_is() -> None:
    nodes = [gemm("k", "c", "w1"), gemm("c", "d", "w2"), helper.make_node("Add", ["d", "x"], ["y"])]
    numbers = {"k": random(3, 4), "w1": random(4, 8), "w2": random(8, 6)}
    assert not fold(model(nodes, {"x": [3, 6]}, ["y"], numbers)).report.merged
