"""What a node errs by itself, beside the limits and the types that decide whether it is looked at."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import model, random

from convbn.bench.equivalence.half_emulation import rounded_graph
from convbn.bench.proof import node_errors as room
from convbn.bench.proof.node_errors import _relative, _SideBySide, node_errors
from convbn.export.precision.convert import convert


def layers() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Tanh", ["h"], ["y"], name="last"),
    ]
    return model(nodes, {"x": [8, 12]}, ["y"], {"w": random(12, 16)})


FEEDS = {"x": random(8, 12, seed=1)}


def test_an_error_is_relative_to_what_the_original_gives() -> None:
    assert _relative(1.0, 0.0, 0.0) == 0.0
    assert _relative(1.0, 1.0, 2.0) == 0.5
    assert _relative(1.0, 1.0, 0.0) == math.inf
    assert _relative(math.nan, 0.0, 1.0) == _relative(math.inf, 0.0, 1.0) == math.inf


@pytest.mark.parametrize("norm", ["max", "rms"])
def test_the_error_of_a_node_by_hand(norm: str) -> None:
    low = convert(layers(), "fp16", calibration=None, options=None).model
    rows = {row.node: row.error for row in node_errors(layers(), low, FEEDS, norm)}  # type: ignore[arg-type]
    exact = FEEDS["x"] @ random(12, 16)
    rounded = [array.astype(np.float16).astype(np.float32) for array in (FEEDS["x"], random(12, 16))]
    gap = (rounded[0] @ rounded[1]).astype(np.float16).astype(np.float32) - exact
    expected = (
        np.linalg.norm(gap) / np.linalg.norm(exact)
        if norm == "rms"
        else np.abs(gap).max() / np.abs(exact).max()
    )
    assert rows["first"] == pytest.approx(float(expected), rel=0.1)
    assert rows["last"] > 0


def test_two_models_that_are_too_large_for_one_message_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low = convert(layers(), "fp16", calibration=None, options=None).model
    size = layers().ByteSize() + (rounded_graph(low) or low).ByteSize()
    monkeypatch.setattr(room, "_LARGEST", size)
    assert node_errors(layers(), low, FEEDS)
    monkeypatch.setattr(room, "_LARGEST", size - 1)
    assert node_errors(layers(), low, FEEDS) == ()


def test_numbers_of_eight_bits_are_the_candidates_own() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["q"], name="q", to=TensorProto.UINT8),
        helper.make_node("Cast", ["q"], ["i"], name="i", to=TensorProto.INT64),
        helper.make_node("Cast", ["i"], ["y"], name="y", to=TensorProto.FLOAT),
    ]
    given = model(nodes, {"x": [4]}, ["y"], {})
    pair = _SideBySide(given, given, given)
    assert (pair._shared, pair.compared) == ({"i", "y"}, ["y"])


def test_inputs_of_another_type_are_rounded_to_it() -> None:
    half = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("Tanh", ["h"], ["y"], name="last"),
        ],
        {"x": [8, 12]},
        ["y"],
        {"w": random(12, 16).astype(np.float16)},
        elem_type=TensorProto.FLOAT16,
    )
    assert {row.node for row in node_errors(layers(), half, FEEDS)} == {"first", "last"}
    merged = _SideBySide(layers(), half, half).merged("max")
    assert [
        list(node.output) for node in merged.graph.node if node.op_type == "Cast" and node.input[0] == "x"
    ] == [["convbn::low::x"]]
    assert not any(
        node.op_type == "Cast" for node in _SideBySide(layers(), layers(), layers()).merged("max").graph.node
    )
