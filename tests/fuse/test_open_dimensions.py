"""What a Reshape says of open dimensions: equal names cancel, and a new name is what is left."""

from __future__ import annotations

import pytest
from onnx import helper

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
