"""What a Reshape says of open dimensions: equal names cancel, and a new name is what is left."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random, relative_error, run

from convbn.fuse.fold import fold
from convbn.fuse.frontends.onnx.model.dimensions import Dimensions, solved


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
