"""Split and Slice in whole graphs: maps that reach every piece, and pieces whose stated shapes are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold

X = {"x": [2, 6, 6, 6]}
BENT = [helper.make_node("Tanh", ["x"], ["t"]), batchnorm("t", "n")]
"""A BatchNorm that can only go forward."""


def node(operator: str, sources: str, targets: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, sources.split(), targets.split(), name=targets, **attributes)


def check(built: onnx.ModelProto, left: int) -> Folding:
    result = fold(built)
    assert result.report.batchnorm.after == left, result.report.kept
    feeds = {"x": random(*X["x"], seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    return result


@pytest.mark.parametrize("sizes", [[6], [2, 4], [4, 2], [1, 2, 3]])
def test_every_piece_of_the_channels_takes_its_part(sizes: Sequence[int]) -> None:
    names = [f"p{i}" for i in range(len(sizes))]
    nodes = [
        *BENT,
        node("Split", "n sizes", " ".join(names), axis=1),
        *(node("Conv", f"{name} {name}.w", f"{name}.y") for name in names),
    ]
    weights = {f"p{i}.w": random(4, size, 3, 3, seed=i) for i, size in enumerate(sizes)}
    stored = {"sizes": np.array(sizes), **weights, **batchnorm_parameters(6)}
    result = check(model(nodes, X, [f"{name}.y" for name in names], stored), 0)
    assert result.report.folded[0].rule == "batchnorm-forward"


def test_pieces_of_rows_take_the_whole_map() -> None:
    nodes = [
        *BENT,
        node("Split", "n", "a b", axis=2, num_outputs=2),
        node("Conv", "a w", "y"),
        node("Conv", "b w", "z"),
    ]
    check(model(nodes, X, ["y", "z"], {"w": random(4, 6, 3, 3), **batchnorm_parameters(6)}), 0)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_slice_before_a_convolution(axis: int) -> None:
    bounds = {"start": np.array([1]), "stop": np.array([5]), "axis": np.array([axis])}
    stored = {**bounds, "w": random(4, 4 if axis == 1 else 6, 3, 3), **batchnorm_parameters(6)}
    nodes = [*BENT, node("Slice", "n start stop axis", "s"), node("Conv", "s w", "y")]
    check(model(nodes, X, ["y"], stored), 0)


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_a_slice_of_rows_behind_a_convolution(axis: int) -> None:
    bounds = {"start": np.array([1]), "stop": np.array([2]), "axis": np.array([axis])}
    stored = {**bounds, "w": random(6, 6, 3, 3), **batchnorm_parameters(6)}
    nodes = [node("Conv", "x w", "c"), node("Slice", "c start stop axis", "s"), batchnorm("s", "y")]
    check(model(nodes, X, ["y"], stored), 0)


def stated(built: onnx.ModelProto, name: str, shape: Sequence[int]) -> onnx.ModelProto:
    """The model with a shape that it only states."""
    built.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return built


@pytest.mark.parametrize("shape", [[], [6], [2, 2], [2, 2, 6, 6]])
def test_a_stated_shape_that_does_not_add_up(shape: Sequence[int]) -> None:
    """onnxruntime runs such a model with a warning; by the stated sizes the map would meet the wrong channels."""
    piece = batchnorm_parameters(3, prefix="p")
    nodes = [
        node("Conv", "x w", "c"),
        node("Split", "c", "a b", axis=1, num_outputs=2),
        batchnorm("b", "y", prefix="p"),
        node("Tanh", "a", "z"),
    ]
    behind = stated(model(nodes, X, ["y", "z"], {"w": random(6, 6, 3, 3), **piece}), "a", shape)
    (kept,) = fold(behind).report.kept
    assert (kept.reason, "how many channels" in kept.detail) == ("axis-not-proven", True)
    nodes = [
        *BENT,
        node("Split", "n", "a b", axis=1, num_outputs=2),
        node("Conv", "a v", "y"),
        node("Conv", "b v", "z"),
    ]
    in_front = stated(
        model(nodes, X, ["y", "z"], {"v": random(4, 3, 3, 3), **batchnorm_parameters(6)}), "a", shape
    )
    assert [kept.name for kept in fold(in_front).report.kept] == ["bn"]


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("kind", ["Split", "Slice"])
def test_a_batchnorm_of_another_size_than_its_piece(kind: str, channels: int) -> None:
    """No runtime runs such a model; folded, its map would spill over to the channels of the other piece."""
    pieces = {
        "Split": [node("Split", "c", "s z", axis=1, num_outputs=2)],
        "Slice": [node("Slice", "c start stop start", "s"), node("Tanh", "x", "z")],
    }
    bounds = {"start": np.array([1]), "stop": np.array([4])}
    stored = {"w": random(6, 6, 3, 3), **bounds, **batchnorm_parameters(channels)}
    nodes = [node("Conv", "x w", "c"), *pieces[kind], batchnorm("s", "y")]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X["x"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")],
        [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    result = fold(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert [str(kept.reason) for kept in result.report.kept] == ["parameters-malformed"]
    assert "BatchNormalization" in operators(result.model)
