"""The same BatchNorm in every piece of a split (ghost BatchNorm), or twice over one value, goes as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, operators, random, relative_error, run

from convbn.fuse.fold import fold
from convbn.fuse.options import FuseOptions

node = helper.make_node
FEEDS = {"x": random(4, 4, 6, 6, seed=3)}


def named(source: str, target: str, *, name: str, prefix: str = "bn") -> onnx.NodeProto:
    made = batchnorm(source, target, prefix=prefix)
    made.name = name
    return made


def built(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("y",), **more: np.ndarray
) -> onnx.ModelProto:
    arrays: Mapping[str, Any] = {"w": random(6, 4, 1, 1), **batchnorm_parameters(6), **more}
    assert len(np.unique(np.sign(arrays["bn.gamma"]))) == 2
    graph = helper.make_graph(
        [node("Conv", ["x", "w"], ["c"], name="conv"), *nodes],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4, 6, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def pieces(axis: int, *batchnorms: onnx.NodeProto) -> list[onnx.NodeProto]:
    names = [f"p{i}" for i in range(len(batchnorms))]
    split = node("Split", ["c"], names, axis=axis, num_outputs=len(names))
    joined = node("Concat", [bn.output[0] for bn in batchnorms], ["j"], axis=axis)
    return [split, *batchnorms, joined, node("Tanh", ["j"], ["y"])]


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_in_every_piece_of_a_split(axis: int, count: int) -> None:
    model = built(pieces(axis, *(named(f"p{i}", f"b{i}", name=f"bn{i}") for i in range(count))))
    result = fold(model)
    assert "BatchNormalization" not in operators(result.model)
    assert {found.name for found in result.report.folded} == {f"bn{i}" for i in range(count)}
    assert relative_error(run(model, FEEDS), run(result.model, FEEDS)) < 1e-5


def test_another_one_in_a_piece_takes_the_inverse_of_the_first() -> None:
    other = batchnorm_parameters(6, prefix="o", seed=4)
    model = built(
        pieces(2, named("p0", "b0", name="bn0"), named("p1", "b1", prefix="o", name="bn1")), **other
    )
    result = fold(model, FuseOptions(skip=("batchnorm-apart",)))
    assert "the other pieces of Split" in result.report.kept[0].detail
    assert {kept.name for kept in result.report.kept} == {"bn1"}
    assert {folded.name: set(folded.into) for folded in result.report.folded} == {"bn0": {"bn1", "conv"}}
    assert relative_error(run(model, FEEDS), run(result.model, FEEDS)) < 1e-5


def test_a_piece_that_is_seen_keeps_them() -> None:
    model = built(pieces(2, *(named(f"p{i}", f"b{i}", name=f"bn{i}") for i in range(2))), ("y", "p1"))
    result = fold(model)
    assert len(result.report.kept) == 2
    assert "'p1' is also an output of the model" in result.report.kept[0].detail


def test_twice_over_one_value() -> None:
    model = built(
        [
            named("c", "a", name="bn0"),
            named("c", "b", name="bn1"),
            node("Tanh", ["a"], ["t"]),
            node("Sigmoid", ["b"], ["s"]),
            node("Mul", ["t", "s"], ["y"]),
        ]
    )
    result = fold(model)
    assert "BatchNormalization" not in operators(result.model)
    assert relative_error(run(model, FEEDS), run(result.model, FEEDS)) < 1e-5


def test_a_scale_that_two_layers_read_goes_once() -> None:
    """It could be put on the layer again and taken off the readers; the second BatchNorm is gone by then."""
    zeros = {"bn.beta": np.zeros(6, "f4"), "bn.mean": np.zeros(6, "f4")}
    kernels = {"v": random(3, 6, 1, 1, seed=1), "u": random(3, 6, 1, 1, seed=2)}
    readers = [node("Conv", ["b0", "v"], ["y"], name="v"), node("Conv", ["b1", "u"], ["z"], name="u")]
    twice = [named("c", f"b{i}", name=f"bn{i}") for i in range(2)]
    model = built([*twice, *readers], ("y", "z"), **zeros, **kernels)
    result = fold(model)
    assert operators(result.model) == ["Conv"] * 3
    assert [(found.name, found.into) for found in result.report.folded] == [
        ("bn1", ("conv",)),
        ("bn0", ("conv",)),
    ]
    assert relative_error(run(model, FEEDS), run(result.model, FEEDS)) < 1e-5
