"""Layers beside a BatchNorm whose parameters do not fit each other: the BatchNorm stays, and nothing crashes.

No runtime runs these models. A fold that went on would crash, or make a model that runs out of one that does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, random

from convbn.fuse.fold import fold

OTHER = batchnorm_parameters(6, prefix="o", seed=4)
LONELY = batchnorm_parameters(6)
"""As a scale alone where a layer takes no shift."""
LONELY["bn.beta"] *= 0
LONELY["bn.mean"] *= 0


def unchecked(nodes: Sequence[onnx.NodeProto], stored: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A model without the shapes that inference would not find."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def reason_behind(layer: onnx.NodeProto, stored: Mapping[str, np.ndarray]) -> str:
    """Why a BatchNorm behind the layer, which gives ``c``, stays."""
    result = fold(unchecked([layer, batchnorm("c", "y")], {**LONELY, **stored}))
    return {kept.name: str(kept.reason) for kept in result.report.kept}["bn"]


def detail_before(layer: onnx.NodeProto, stored: Mapping[str, np.ndarray]) -> str:
    """Why a BatchNorm that can only go forward, into the layer that gives ``y``, stays."""
    bent = [helper.make_node("Tanh", ["x"], ["t"]), batchnorm("t", "c")]
    result = fold(unchecked([*bent, layer], {**LONELY, **stored}))
    return {kept.name: kept.detail for kept in result.report.kept}["bn"]


@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "var"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 6), (2, 6)])
def test_another_batchnorm(name: str, shape: tuple[int, ...]) -> None:
    stored = {**OTHER, f"o.{name}": np.ones(shape, "f4")}
    assert reason_behind(batchnorm("x", "c", prefix="o"), stored) == "parameters-malformed"
    assert "output channels and the BatchNorm 6" in detail_before(batchnorm("c", "y", prefix="o"), stored)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (12,), (6, 1)])
def test_a_bias_of_another_size(operator: str, shape: tuple[int, ...]) -> None:
    stored = {"w": random(6, 6, 1, 1), "b": np.ones(shape, "f4")}
    assert reason_behind(helper.make_node(operator, ["x", "w", "b"], ["c"]), stored) == "parameters-malformed"
    assert "the bias of" in detail_before(helper.make_node(operator, ["c", "w", "b"], ["y"]), stored)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((5, 3, 1, 1), 2), ((7, 3, 1, 1), 2), ((6, 6, 1, 1), 0), ((6, 6, 1, 1), -1), ((6,), 1), ((), 1)],
)
def test_a_weight_that_its_groups_do_not_divide(operator: str, shape: tuple[int, ...], groups: int) -> None:
    stored = {"w": np.ones(shape, "f4")}
    behind = helper.make_node(operator, ["x", "w"], ["c"], group=groups)
    assert reason_behind(behind, stored) == "parameters-malformed"
    in_front = helper.make_node(operator, ["c", "w"], ["y"], group=groups)
    assert "the weight of" in detail_before(in_front, stored)


def test_a_pool_that_reads_nothing() -> None:
    """Its map would be lost: there is nothing to take it."""
    assert reason_behind(helper.make_node("GlobalAveragePool", [""], ["c"]), LONELY) == "parameters-malformed"
