"""Rows that are put or added into others: graph networks sum over neighbours that way."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import fold

NODES, EDGES, CHANNELS = 5, 7, 6
FROM = np.array([0, 1, 1, 4, 3, 2, 0])
TO = np.array([1, 0, 3, 3, 2, 0, 1])
APART = np.array([4, 0, 2, 1, 3])


def node(operator: str, sources: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, sources.split(), [target], name=f"{operator} {target}", **attributes)


def check(nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """The operators that are left, and why BatchNorms stay; the outputs are those of before."""
    read, made = {name for n in nodes for name in n.input}, {name for n in nodes for name in n.output}
    known = {
        "w": random(4, CHANNELS),
        "v": random(4, CHANNELS, seed=2),
        "bias": random(CHANNELS),
        "zeros": np.zeros((NODES, CHANNELS), "f4"),
        "from": FROM,
        "rows": np.tile(TO[:, None], (1, CHANNELS)),
        "pairs": TO[:, None],
        "apart": np.tile(APART[:, None], (1, CHANNELS)),
        "size": np.array([NODES, CHANNELS]),
        "zero": np.zeros(1, "f4"),
        **batchnorm_parameters(CHANNELS),
        **stored,
    }
    numbers = {name: array for name, array in known.items() if name in read - made}
    built = model(nodes, {"x": [NODES, 4]}, ["y"], numbers, opset=18)
    result = fold(built)
    feeds = {"x": random(NODES, 4, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 5e-6
    return operators(result.model), [str(kept.reason) for kept in result.report.kept]


MESSAGES = [node("MatMul", "x w", "m"), node("Gather", "m from", "g")]
BEHIND = [node("Add", "s bias", "b"), batchnorm("b", "n"), node("Tanh", "n", "y")]
FILLED = {
    "stored": [],
    "ConstantOfShape": [node("ConstantOfShape", "size", "zeros")],
    "Expand": [node("Expand", "zero size", "zeros")],
}


@pytest.mark.parametrize("zeros", FILLED)
@pytest.mark.parametrize("way", ["ScatterElements", "ScatterND"])
def test_a_sum_over_neighbours(way: str, zeros: str) -> None:
    """The scale goes back to the product past the sum, the shift into the bias behind it."""
    index = "rows" if way == "ScatterElements" else "pairs"
    added = node(way, f"zeros {index} g", "s", reduction="add")
    left, _ = check([*FILLED[zeros], *MESSAGES, added, *BEHIND], {})
    assert "BatchNormalization" not in left
    assert "Mul" not in left


def test_a_sum_lets_no_shift_pass() -> None:
    nodes = [*MESSAGES, node("ScatterElements", "zeros rows g", "s", reduction="add"), batchnorm("s", "n")]
    left, _ = check([*nodes, node("Tanh", "n", "y")], {})
    # The scale goes, and the shift stays as an addition.
    assert left == ["MatMul", "Gather", "ScatterElements", "Add", "Tanh"]


@pytest.mark.parametrize("start", ["zeros", "ones", "layer"])
def test_what_is_added_to_takes_the_scale_as_well(start: str) -> None:
    more = [node("MatMul", "x v", "layer")] if start == "layer" else []
    added = node("ScatterElements", f"{start} rows g", "s", reduction="add")
    left, reasons = check([*more, *MESSAGES, added, *BEHIND], {"ones": np.ones((NODES, CHANNELS), "f4")})
    assert ("BatchNormalization" in left) is (start == "ones")
    assert reasons == ["producer-not-foldable"] * (start == "ones")


@pytest.mark.parametrize("reduction", ["max", "min"])
@pytest.mark.parametrize("positive", [True, False])
def test_into_a_maximum_only_what_is_positive(reduction: str, positive: bool) -> None:
    gamma = batchnorm_parameters(CHANNELS)["bn.gamma"]
    added = node("ScatterElements", "layer rows g", "s", reduction=reduction)
    nodes = [node("MatMul", "x v", "layer"), *MESSAGES, added, batchnorm("s", "n"), node("Tanh", "n", "y")]
    left, reasons = check(nodes, {"bn.gamma": np.abs(gamma) if positive else gamma})
    assert ("BatchNormalization" in left) is not positive
    assert reasons == ["negative-scale"] * (not positive)


def test_rows_that_take_the_place_of_others() -> None:
    nodes = [
        node("MatMul", "x w", "m"),
        node("MatMul", "x v", "layer"),
        node("ScatterElements", "layer apart m", "s"),
        batchnorm("s", "n"),
        node("Tanh", "n", "y"),
    ]
    assert "BatchNormalization" not in check(nodes, {})[0]


@pytest.mark.parametrize("scale", [True, False])
def test_in_front(scale: bool) -> None:
    nodes = [
        node("Sigmoid", "x", "a"),
        batchnorm("a", "n"),
        node("Gather", "n from", "g"),
        node("ScatterElements", "zeros rows g", "s", reduction="add"),
        node("MatMul", "s k", "y"),
    ]
    stored = {
        **{name: array[:4] for name, array in batchnorm_parameters(CHANNELS).items()},
        "zeros": np.zeros((NODES, 4), "f4"),
        "rows": np.tile(TO[:, None], (1, 4)),
        "k": random(4, 3),
    }
    if scale:
        stored |= {"bn.beta": np.zeros(4, "f4"), "bn.mean": np.zeros(4, "f4")}
    assert ("BatchNormalization" in check(nodes, stored)[0]) is not scale


def test_along_the_axis_of_the_indices_nothing_passes() -> None:
    nodes = [
        node("MatMul", "x w", "m"),
        node("Transpose", "m", "t"),
        node("Transpose", "rows", "columns"),
        node("Gather", "t from", "g", axis=1),
        node("Transpose", "zeros", "z"),
        node("ScatterElements", "z columns g", "s", axis=1, reduction="add"),
        batchnorm("s", "n"),
        node("Tanh", "n", "y"),
    ]
    stored = {name: array[:5] for name, array in batchnorm_parameters(CHANNELS).items()}
    assert check(nodes, stored)[1] == ["axis-not-proven"]
