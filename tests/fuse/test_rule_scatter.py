"""The rule for rows put or added into others: the law in float64, every refusal, and what is read as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run
from support.rule_laws import affine, backward, forward, node, reason, refusal, took

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.fold import fold
from convbn.fuse.operators.scatter import Scatter
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value

ROWS, CHANNELS, UPDATES = 4, 3, 6
TO = np.array([0, 3, 1, 1, 0, 0])
ALL = np.array([2, 0, 1, 3, 2, 0])


def scatter(
    reduction: str = "add", way: str = "vector", to: np.ndarray = TO, *, data: Any = None, updates: Any = None
) -> Node:
    """Rows of ``[6, 3]`` into ``[4, 3]``, by ``index_add``, ScatterElements or ScatterND."""
    indices = {"vector": to, "elements": np.tile(to[:, None], (1, CHANNELS)), "nd": to[:, None]}[way]
    op = Scatter("ScatterND" if way == "nd" else "ScatterElements", (0,), reduction)
    return node(
        op,
        (ROWS, CHANNELS) if data is None else data,
        indices,
        updates or (UPDATES, CHANNELS),
        output=(ROWS, CHANNELS),
    )


WAYS = ["vector", "elements", "nd"]


def positive(kind: str) -> Affine:
    found = affine(CHANNELS, kind)
    return Affine(np.abs(found.scale), found.shift)


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_takes_a_scale_on_both(way: str) -> None:
    moves = took(backward(scatter("add", way), affine(CHANNELS, "scale"), 1))
    assert [value.name for value, _, _ in moves.produced] == ["v2", "v0"]
    took(forward(scatter("add", way), 0, affine(CHANNELS, "scale"), 1))
    moves = took(forward(scatter("add", way), 2, affine(CHANNELS, "scale"), 1))
    assert [value.name for value, _, _ in moves.produced] == ["v0"]


@pytest.mark.parametrize("kind", ["both", "shift"])
def test_a_sum_takes_no_shift(kind: str) -> None:
    said = (
        "producer-not-foldable",
        "ScatterElements 'n' adds up as many rows as there are, and a shift with each",
    )
    assert refusal(backward(scatter(), affine(CHANNELS, kind), 1)) == said
    assert refusal(forward(scatter(), 2, affine(CHANNELS, kind), 1)) == said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
def test_what_takes_the_place_of_others_takes_all(kind: str, way: str) -> None:
    took(backward(scatter("none", way, ALL), affine(CHANNELS, kind), 1))
    for slot in (0, 2):
        took(forward(scatter("none", way, ALL), slot, affine(CHANNELS, kind), 1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reduction", ["max", "min"])
@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
def test_into_a_maximum_a_positive_scale(kind: str, reduction: str, way: str) -> None:
    took(backward(scatter(reduction, way), positive(kind), 1))
    took(forward(scatter(reduction, way), 2, positive(kind), 1))
    if kind != "shift":
        assert refusal(backward(scatter(reduction, way), affine(CHANNELS, kind), 1))[0] == "negative-scale"


def test_along_what_the_indices_run_over_nothing_passes() -> None:
    assert reason(backward(scatter(), affine(ROWS, "scale"), 0)) == "axis-not-proven"
    assert reason(forward(scatter(), 2, affine(UPDATES, "scale"), 0)) == "axis-not-proven"


def test_the_indices_are_no_data() -> None:
    assert reason(forward(scatter(), 1, affine(CHANNELS, "scale"), 1)) == "axis-not-proven"


def test_one_value_for_both_stays() -> None:
    value = Value("v", (ROWS, CHANNELS))
    at = scatter("none", "vector", ALL[:ROWS], data=value, updates=value)
    assert reason(backward(at, affine(CHANNELS, "scale"), 1)) == "axis-not-proven"


@pytest.mark.parametrize("changed", [{"data": (ROWS, None)}, {"updates": (UPDATES, 1)}, {"data": (ROWS,)}])
def test_channels_that_are_not_known_on_both(changed: dict[str, Any]) -> None:
    at = scatter(**changed)
    assert reason(backward(at, affine(CHANNELS, "scale"), 1)) == "axis-not-proven"
    assert reason(forward(at, 2, affine(CHANNELS, "scale"), 1)) == "axis-not-proven"


def test_a_scale_of_zero_cannot_be_taken_out() -> None:
    by = Affine.scale_by(np.array([1.0, 0.0, 2.0]))
    took(backward(scatter(), by, 1))
    assert refusal(forward(scatter(), 2, by, 1)) == (
        "ill-conditioned",
        "a scale of 0 cannot be taken out of ScatterElements 'n'",
    )


@pytest.mark.parametrize("name", ["v0", "v2"])
def test_what_the_operands_refuse_ends_it(name: str) -> None:
    assert reason(backward(scatter(), affine(CHANNELS, "scale"), 1, [name])) == "too-far"
    slot = 2 if name == "v0" else 0
    assert reason(forward(scatter(), slot, affine(CHANNELS, "scale"), 1, [name])) == "too-far"
    assert reason(forward(scatter(), slot, affine(CHANNELS, "scale"), 1, ["out"])) == "too-far"


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=12),
    st.sampled_from(["add", "max", "min", "none"]),
    st.sampled_from(WAYS),
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=CHANNELS, max_size=CHANNELS),
    st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, -0.5]), min_size=CHANNELS, max_size=CHANNELS),
    st.sampled_from([None, 0, 2]),
)
def test_whatever_the_indices_the_law_holds(
    to: list[int], reduction: str, way: str, scale: list[float], shift: list[float], slot: int | None
) -> None:
    """Rows that come often, or never; ``forward`` and ``backward`` check what they took in float64."""
    by = Affine(np.array(scale), np.array(shift))
    at = scatter(reduction, way, np.array(to), updates=(len(to), CHANNELS))
    answer = backward(at, by, 1) if slot is None else forward(at, slot, by, 1)
    stopped = reduction == "add" and not by.is_scale
    stopped |= reduction in ("max", "min") and min(scale) <= 0
    stopped |= slot is not None and 0.0 in scale
    assert isinstance(answer, Refusal) is stopped, answer


# --- what is read as one ----------------------------------------------------------------------------------------

INDICES = {"ScatterElements": np.tile(TO[:ROWS, None], (1, CHANNELS)), "ScatterND": TO[:ROWS, None]}


@pytest.mark.parametrize(
    ("kind", "reduction", "indices", "folds"),
    [
        ("ScatterElements", "none", None, True),
        ("ScatterElements", "mul", None, False),
        ("ScatterND", "max", None, True),
        ("ScatterND", "mul", None, False),
        ("ScatterND", "none", np.stack([TO[:ROWS], TO[:ROWS] % CHANNELS], 1), False),
    ],
)
def test_which_of_them_are_read(kind: str, reduction: str, indices: np.ndarray | None, folds: bool) -> None:
    """A product takes no map; single numbers have not the axes of rows."""
    rows = indices is None
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["d"]),
        helper.make_node("MatMul", ["x", "v"], ["u2"]),
        *([] if rows else [helper.make_node("ReduceSum", ["u2", "one"], ["u1"], keepdims=0)]),
        helper.make_node(kind, ["d", "i", "u2" if rows else "u1"], ["c"], reduction=reduction),
        batchnorm("c", "y"),
    ]
    parameters = batchnorm_parameters(CHANNELS)
    parameters["bn.gamma"] = np.abs(parameters["bn.gamma"])
    stored = {
        "w": random(4, CHANNELS),
        "v": random(4, CHANNELS, seed=1),
        "i": INDICES[kind] if indices is None else indices,
        **({} if rows else {"one": np.int64([1])}),
        **parameters,
    }
    built = model(nodes, {"x": [ROWS, 4]}, ["y"], stored, opset=18)
    result = fold(built)
    assert ("BatchNormalization" not in operators(result.model)) is folds
    feeds = {"x": random(ROWS, 4, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_indices_of_an_unknown_number_of_columns() -> None:
    """How many axes ScatterND runs over follows from the last size of its indices."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["d"]),
        helper.make_node("ScatterND", ["d", "i", "u"], ["c"]),
        batchnorm("c", "y"),
    ]
    stored = {"w": random(4, CHANNELS), **batchnorm_parameters(CHANNELS)}
    built = model(nodes, {"x": [ROWS, 4], "u": [2, CHANNELS]}, ["y"], stored, opset=18)
    built.graph.input.append(helper.make_tensor_value_info("i", 7, [2, "k"]))
    (kept,) = fold(built).report.kept
    assert (kept.reason, "ScatterND" in kept.detail) == ("producer-not-foldable", True)
