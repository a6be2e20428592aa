"""What a Reshape says of open dimensions: equal names cancel, and a new name is what is left."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random, relative_error, run

from convbn.fuse.fold import fold
from convbn.fuse.frontends.onnx.model.dimensions import Dimensions, solved
from convbn.fuse.frontends.onnx.model.inference import inferred


@pytest.mark.parametrize(
    ("data", "output", "now"),
    [
        (("N", 3, 8, 8), ("N", "k"), ("N", 192)),
        (("N", 3, 8, 8), ("k", 192), ("N", 192)),
        (("N", 3, 8, 8), (None, 192), ("N", 192)),
        (("N", 3, "H", "W"), ("N", 3, "k"), ("N", 3, "k")),  # H·W has no name
        (("N", 3, 8, 8), ("k", 96), ("k", 96)),  # 2·N has none
        (("N", 3, 8, 8), ("k", "l"), ("k", "l")),
        (("N", 3, 8, 8), ("M", "N", "k"), ("M", "N", "k")),
        (("N", "N", 2), ("N", "k"), ("N", "k")),
        (("N", 3, 7), ("N", 2, "k"), ("N", 2, "k")),  # shapes that contradict each other
        (("N", 0), ("N", "k"), ("N", "k")),
    ],
)
def test_a_reshape_solves_one_name(data: Dimensions, output: Dimensions, now: Dimensions) -> None:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    found = solved(nodes, {"x": data, "y": output})
    assert found == {"x": data, "y": now}


def test_what_is_found_counts_wherever_the_name_stands() -> None:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"]), helper.make_node("Reshape", ["z", "to"], ["r"])]
    shapes: dict[str, Dimensions] = {
        "x": ("N", 3, 8, 8),
        "y": ("N", "k"),
        "z": ("N", "k"),
        "r": ("N", 8, "l"),
    }
    assert solved(nodes, shapes) == {"x": ("N", 3, 8, 8), "y": ("N", 192), "z": ("N", 192), "r": ("N", 8, 24)}


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (2, 6), (-1, 9)])
def test_a_size_below_0_is_open_also_where_a_slice_cuts_it(begin: int, end: int) -> None:
    """onnx's own inference ends the process there."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        helper.make_node("Slice", ["n", "begin", "end", "axes"], ["s"], name="slice"),
        helper.make_node("MatMul", ["s", "k"], ["y"], name="product"),
    ]
    numbers = {name: np.array([number]) for name, number in (("begin", begin), ("end", end), ("axes", 0))}
    stored = {"w": random(4, 4, 1, 1), "k": random(6, 2), **numbers, **batchnorm_parameters(4)}
    built = model(nodes, {"x": [3, 4, 6, 6]}, ["y"], stored)
    built.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    built.graph.output[0].type.tensor_type.ClearField("shape")
    result = fold(built)
    assert result.report.batchnorm.after == 0
    assert result.model.graph.input[0] == built.graph.input[0]
    feeds = {"x": random(3, 4, 6, 6)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("AveragePool", ["n"], ["r"], kernel_shape=[20, 20]),
        helper.make_node("MaxPool", ["n"], ["r"], kernel_shape=[20, 20]),
        helper.make_node("Conv", ["n", "v"], ["r"]),
        helper.make_node("ConvTranspose", ["n", "u"], ["r"], pads=[50] * 4),
        helper.make_node("Pad", ["n", "pads"], ["r"]),
        helper.make_node("Resize", ["n", "", "scales"], ["r"]),
    ],
    ids=lambda node: node.op_type,
)
def test_a_size_below_0_that_follows_is_not_cut_by_a_slice(node: onnx.NodeProto) -> None:
    """No runtime runs such a model, but it may not end the process either, as onnx's own inference does there."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        node,
        helper.make_node("Slice", ["r", "begin", "end", "axes"], ["y"], name="slice"),
    ]
    numbers = {name: np.array([number]) for name, number in (("begin", 0), ("end", 3), ("axes", 2))}
    weights = {"w": random(4, 4, 1, 1), "v": random(4, 4, 20, 20), "u": random(4, 4, 3, 3)}
    sizes = {"pads": np.array([0, 0, -50, 0] * 2), "scales": np.ones(4, np.float32)}
    stored = {**weights, **sizes, **numbers, **batchnorm_parameters(4)}
    built = model(nodes, {"x": [1, 4, 200, 200]}, ["y"], stored)
    for dim in built.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 8
    scales = next(one for one in built.graph.initializer if one.name == "scales")
    scales.raw_data = np.array([1, 1, -1, 1], np.float32).tobytes()
    built.graph.output[0].type.tensor_type.ClearField("shape")
    result = fold(built)
    assert result.report.batchnorm.after == 0
    assert [one.op_type for one in result.model.graph.node][-1] == "Slice"


def test_a_shape_is_followed_through_a_long_table_of_integers() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Gather", ["table", "places"], ["to"]),
        helper.make_node("Reshape", ["c", "to"], ["r"]),
        batchnorm("r", "y"),
    ]
    stored = {"w": random(4, 4, 1, 1), "table": np.array([0, 0, 2, -1, *range(3000)]), "places": np.arange(4)}
    built = model(nodes, {"x": [1, 4, 8, 8]}, ["y"], {**stored, **batchnorm_parameters(4)})
    assert fold(built).report.batchnorm.after == 0


def test_nor_by_a_slice_in_a_local_function() -> None:
    cut = helper.make_node("Slice", ["data", "begin", "end", "axes"], ["cut"])
    function = helper.make_function(
        "local", "Cut", list(cut.input), ["cut"], [cut], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("AveragePool", ["x"], ["r"], kernel_shape=[20, 20]),
        helper.make_node("Cut", ["r", "begin", "end", "axes"], ["y"], domain="local"),
    ]
    numbers = {name: np.array([number]) for name, number in (("begin", 0), ("end", 3), ("axes", 2))}
    built = model(nodes, {"x": [1, 4, 200, 200]}, ["y"], numbers, functions=[function])
    for dim in built.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 8
    built.graph.output[0].type.tensor_type.ClearField("shape")
    found = inferred(built)
    for one in (built, found):
        assert [node.op_type for node in one.functions[0].node] == ["Slice"]
