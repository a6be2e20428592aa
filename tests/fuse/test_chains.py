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


def test_a_product_without_a_place_for_the_bias_stays() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    numbers = {"w1": random(4, 8), "b1": random(8), "w2": random(8, 6), "shape": np.array([1, 3, 8])}
    built = onnx.shape_inference.infer_shapes(model(nodes, {"x": [3, 4]}, ["y"], numbers))
    assert len(fold(built).model.graph.node) == 3


def test_a_second_gemm_that_ignores_its_bias_stays() -> None:
    gemm = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["c"]),
        helper.make_node("Gemm", ["c", "w2", "b2"], ["y"], beta=0.0),
    ]
    check(gemm, {"w1": (4, 8), "b1": (8,), "w2": (8, 6), "b2": (6,)}, 2, (3, 4))


def test_transposed_data_stays() -> None:
    gemm = [
        helper.make_node("Gemm", ["x", "w1"], ["c"], transA=1),
        helper.make_node("Gemm", ["c", "w2"], ["y"]),
    ]
    check(gemm, {"w1": (4, 8), "w2": (8, 6)}, 2, (4, 3))
