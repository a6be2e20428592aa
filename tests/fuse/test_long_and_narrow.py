"""Models that are small and odd: chains of hundreds, factors that half precision lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import rule_laws
from support.graphs import batchnorm, batchnorm_parameters, operators, random, relative_error, run

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.fold import fold
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise

node = helper.make_node
X = (1, 4, 5, 5)


def model(
    nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray], dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", dtype, X)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def left(given: onnx.ModelProto, bound: float = 1e-5) -> int:
    """How many BatchNorms stay; the outputs are those of before."""
    folded = fold(given).model
    feeds = {"x": random(*X, seed=3)}
    assert relative_error(run(given, feeds), run(folded, feeds)) < bound
    return operators(folded).count("BatchNormalization")


@pytest.mark.parametrize("kind", ["Mul", "Transpose", "Cast"])
def test_a_weight_behind_hundreds_of_constant_operators(kind: str) -> None:
    attributes: dict[str, Any] = {"Transpose": {"perm": [1, 0, 2, 3]}, "Cast": {"to": 1}}.get(kind, {})
    chain = [
        node(kind, [f"w{i}", *(["c"] if kind == "Mul" else [])], [f"w{i + 1}"], **attributes)
        for i in range(500)
    ]
    nodes = [*chain, node("Conv", ["x", "w500"], ["b"]), batchnorm("b", "y")]
    stored = {"w0": random(4, 4, 1, 1), "c": np.float32(1.0001), **batchnorm_parameters(4)}
    assert left(model(nodes, stored)) == 0


def test_hundreds_of_batchnorms_into_one_weight() -> None:
    n = 300
    pieces = [f"p{i}" for i in range(n)]
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Split", ["c", "sizes"], pieces, axis=1),
        *(node("BatchNormalization", [p, *(f"{k}{p}" for k in "gbmv")], [f"n{p}"]) for p in pieces),
        node("Concat", [f"n{p}" for p in pieces], ["y"], axis=1),
    ]
    stored = {"w": random(n, 4, 1, 1), "sizes": np.ones(n, np.int64)}
    for seed, piece in enumerate(pieces):
        stored |= {f"{k}{piece}": random(1, seed=4 * seed + i) for i, k in enumerate("gbm")}
        stored |= {f"v{piece}": random(1, seed=4 * seed + 3) ** 2 + np.float32(0.1)}
    assert left(model(nodes, stored)) == 0


@pytest.mark.parametrize("operation", [Arithmetic.MULTIPLY, Arithmetic.DIVIDE])
@pytest.mark.parametrize(("factor", "refused"), [(1e-3, False), (1e-6, True)])
def test_a_factor_that_half_precision_lacks(operation: Arithmetic, factor: float, refused: bool) -> None:
    """Below 6e-5 a float16 loses digits: 1e-6 has four bits left of eleven."""
    constant = np.full((4, 1, 1), factor, "f2")
    scale = Affine.scale_by(np.array([1.5, -0.7, 1.1, -3.0]))
    built = rule_laws.node(Elementwise(operation), X, constant, output=X)
    answer = rule_laws.backward(built, scale, 1)
    if refused:
        assert rule_laws.reason(answer) == "out-of-range"
    else:
        rule_laws.took(answer)
