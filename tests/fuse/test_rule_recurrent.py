"""The rule for recurrent layers: the law in float64, every refusal, and GRU, LSTM and RNN in a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run
from support.rule_laws import affine, forward, node, reason, refusal, took

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.fold import fold
from convbn.fuse.operators.recurrent import Recurrent
from convbn.fuse.view.dataflow import Node

STEPS, BATCH, FEATURES, HIDDEN = 4, 2, 5, 3
KINDS = ["both", "scale", "shift"]


def layer(
    *,
    directions: int = 1,
    bias: Any = None,
    weight: Any = None,
    data: Sequence[int] = (STEPS, BATCH, FEATURES),
) -> Node:
    """Gates of one: a plain recurrent layer."""
    stored = random(directions, HIDDEN, FEATURES) if weight is None else weight
    own = 0.5 * random(directions, HIDDEN, HIDDEN, seed=2)
    more = [] if bias is None else [bias]
    output = (directions * STEPS, BATCH, HIDDEN)
    return node(Recurrent("RNN"), data, stored, own, *more, output=output)


def biases(directions: int = 1, dtype: Any = np.float32) -> np.ndarray:
    return random(directions, 2 * HIDDEN, seed=3, dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_the_input_weight_and_its_bias_take_the_map(directions: int, biased: bool, kind: str) -> None:
    bias = biases(directions) if biased else None
    moves = took(forward(layer(directions=directions, bias=bias), 0, affine(FEATURES, kind), 2))
    assert set(moves.constants) == ({1} if kind != "shift" else set()) | ({3} if kind != "scale" else set())
    if 3 in moves.constants:
        assert moves.constants[3].shape == (directions, 2 * HIDDEN)
        recurrent = moves.constants[3].array()[:, HIDDEN:]
        assert (recurrent == (0 if bias is None else bias[:, HIDDEN:])).all()


def test_a_feature_whose_weights_would_lose_their_digits_stays() -> None:
    """Beside others that are large."""
    weight = np.ones((2, HIDDEN, FEATURES), "f4")
    weight[:, :, 1] = 1e-30
    by = Affine.scale_by(np.array([1, 1e-10, 1, 1, 1]))
    assert reason(forward(layer(directions=2, weight=weight), 0, by, 2)) == "out-of-range"


@pytest.mark.parametrize(("slot", "axis"), [(0, 0), (0, 1), (4, 2), (1, 2)])
def test_only_the_features_of_the_data(slot: int, axis: int) -> None:
    assert refusal(forward(layer(), slot, affine(FEATURES), axis)) == (
        "axis-not-proven",
        "RNN 'n' does not read the map along its features",
    )


def test_another_number_of_features() -> None:
    assert refusal(forward(layer(), 0, affine(4), 2)) == (
        "parameters-malformed",
        "RNN 'n' has 5 input channels and the BatchNorm 4",
    )


@pytest.mark.parametrize("weight", [random(HIDDEN, FEATURES), ...])
def test_a_weight_that_is_none(weight: Any) -> None:
    assert refusal(forward(layer(weight=weight), 0, affine(FEATURES), 2)) == (
        "parameters-malformed",
        "RNN 'n' has no input weight of three axes",
    )


@pytest.mark.parametrize("shape", [(HIDDEN * 2,), (1, HIDDEN), (2, 2 * HIDDEN)])
def test_a_bias_of_another_shape(shape: tuple[int, ...]) -> None:
    assert refusal(forward(layer(bias=random(*shape)), 0, affine(FEATURES), 2)) == (
        "parameters-malformed",
        f"the bias of RNN 'n' has shape {list(shape)}",
    )


@pytest.mark.parametrize("changed", [{"weight": (1, HIDDEN, FEATURES)}, {"bias": (1, 2 * HIDDEN)}])
def test_what_is_computed_in_the_run_stays(changed: dict[str, Any]) -> None:
    assert reason(forward(layer(**changed), 0, affine(FEATURES), 2)) == "weight-not-constant"


@pytest.mark.parametrize("slot", [1, 3])
def test_what_cannot_be_set_ends_it(slot: int) -> None:
    assert reason(forward(layer(), 0, affine(FEATURES), 2, [slot])) == "too-far"


def test_half_precision_that_would_overflow_stays() -> None:
    large = np.full((1, HIDDEN, FEATURES), 6e4, "f2")
    for kind in KINDS[1:]:
        assert reason(forward(layer(weight=large), 0, affine(FEATURES, kind), 2)) == "out-of-range"


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(GATES)),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.sampled_from([(), ("bias",), ("bias", "lengths"), ("bias", "lengths", "h")]),
    st.integers(0, 99),
    st.booleans(),
)
def test_in_a_graph(kind: str, direction: str, more: Sequence[str], seed: int, layout: bool) -> None:
    """Whatever the cell, the direction, the lengths of the sequences and the first state: one map in front goes."""
    directions, rows = 1 + (direction == "bidirectional"), GATES[kind] * HIDDEN
    stored = {
        "w": random(directions, rows, FEATURES, seed=seed),
        "r": random(directions, rows, HIDDEN, seed=seed + 1),
        "bias": random(directions, 2 * rows, seed=seed + 2),
        "lengths": np.int32([STEPS, STEPS - 1]),
        "h": random(directions, BATCH, HIDDEN, seed=seed + 3),
        **batchnorm_parameters(FEATURES, seed=seed),
    }
    optional = [name if name in more else "" for name in ("bias", "lengths", "h")]
    attributes: dict[str, Any] = {"hidden_size": HIDDEN, "direction": direction}
    if kind == "GRU":
        attributes["linear_before_reset"] = int(layout)
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        batchnorm("s", "n"),
        helper.make_node("Transpose", ["n"], ["t"], perm=[2, 0, 1]),
        helper.make_node(kind, ["t", "w", "r", *optional], ["y"], **attributes),
    ]
    used = {name for one in nodes for name in one.input}
    built = model(
        nodes, {"x": [BATCH, FEATURES, STEPS]}, ["y"], {k: v for k, v in stored.items() if k in used}
    )
    result = fold(built)
    assert operators(result.model) == ["Sigmoid", "Transpose", kind]
    feeds = {"x": random(BATCH, FEATURES, STEPS, seed=seed + 4)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-4


def test_a_cell_without_its_weights_is_none() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        batchnorm("s", "n"),
        helper.make_node("RNN", ["n", "w"], ["y"], hidden_size=HIDDEN),
    ]
    stored = {"w": random(1, HIDDEN, FEATURES), **batchnorm_parameters(BATCH)}
    built = model(nodes, {"x": [STEPS, BATCH, FEATURES]}, [], stored)
    built.graph.output.append(helper.make_tensor_value_info("y", 1, None))
    (kept,) = fold(built).report.kept
    assert "RNN" in kept.detail
