"""Integers that several layers read as weights through one DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.bench.proof.prove import FoldPlan
from convbn.fuse.fold import Folding, fold
from convbn.proof import verify

X = (1, 4, 6, 6)
INTEGERS = np.random.default_rng(1).integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
SCALES = {"one scale": np.float32(0.01), "scales by channel": np.float32([0.01, 0.02, 0.03, 0.04])}


def conv(weight: str, target: str, source: str = "x") -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], name=f"conv {target}")


def built(
    nodes: list[onnx.NodeProto], outputs: list[str], scale: Any = SCALES["one scale"], **stored: Any
) -> onnx.ModelProto:
    axis = {"axis": 0} if np.ndim(scale) else {}
    dequantize = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="dq", **axis)
    numbers = {"q": INTEGERS, "s": np.asarray(scale), **stored}
    for number in (1, 2):
        if any(f"bn{number}." in name for node in nodes for name in node.input):
            numbers |= batchnorm_parameters(4, prefix=f"bn{number}", seed=number)
    return model([dequantize, *nodes], {"x": X}, outputs, numbers)


def folded(original: onnx.ModelProto) -> Folding:
    before = original.SerializeToString(deterministic=True)
    result = fold(original)
    assert original.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {"x": random(*X, seed=3)}
    assert relative_error(run(original, feeds), run(result.model, feeds)) < 2e-6
    plan = FoldPlan(
        tuple((one.name, one.into) for one in result.report.folded), result.report.moved, result.report.merges
    )
    assert verify(original, result.model, plan=plan).status == "equal"
    return result


@pytest.mark.parametrize("scale", SCALES)
def test_each_layer_takes_its_own_batchnorm(scale: str) -> None:
    nodes = [
        conv("w", "a"),
        batchnorm("a", "y", prefix="bn1"),
        conv("w", "b"),
        batchnorm("b", "z", prefix="bn2"),
    ]
    result = folded(built(nodes, ["y", "z"], SCALES[scale]))
    assert operators(result.model) == ["DequantizeLinear", "DequantizeLinear", "Conv", "Conv"]


def test_a_layer_without_a_batchnorm_reads_what_it_read() -> None:
    nodes = [conv("w", "a"), batchnorm("a", "y", prefix="bn1"), conv("w", "z"), conv("w", "u")]
    result = folded(built(nodes, ["y", "z", "u"]))
    assert sorted(operators(result.model)) == ["Conv"] * 3 + ["DequantizeLinear"] * 2
    third, fourth = (node.input[1] for node in result.model.graph.node if node.output[0] in ("z", "u"))
    assert third == fourth


def test_two_that_take_the_same_batchnorm_read_one() -> None:
    nodes = [
        conv("w", "a"),
        batchnorm("a", "y", prefix="bn1"),
        conv("w", "b", "y"),
        batchnorm("b", "z", prefix="bn1"),
    ]
    nodes[-1].name = "again"
    result = folded(built(nodes, ["z"]))
    assert sorted(operators(result.model)) == ["Conv", "Conv", "DequantizeLinear"]


def test_where_nothing_folds_the_model_stays_as_it_was() -> None:
    nodes = [
        conv("w", "a"),
        conv("w", "b"),
        helper.make_node("Add", ["a", "b"], ["c"]),
        batchnorm("x", "y", prefix="bn1"),
    ]
    original = built(nodes, ["c", "y"])
    result = fold(original)
    assert result.report.batchnorm.after == 1
    assert result.model.SerializeToString(deterministic=True) == original.SerializeToString(
        deterministic=True
    )


def test_what_else_reads_the_weight_keeps_the_first() -> None:
    nodes = [
        conv("w", "a"),
        batchnorm("a", "y", prefix="bn1"),
        helper.make_node("Neg", ["w"], ["z"], name="neg"),
    ]
    original = built(nodes, ["y", "z"])
    result = fold(original)
    assert [kept.reason for kept in result.report.kept] == ["several-readers"]
    nodes.insert(2, conv("w", "u"))
    nodes[1].input[0] = "u"
    nodes[1], nodes[2] = nodes[2], nodes[1]
    again = folded(built(nodes, ["a", "y", "z"]))
    assert again.report.batchnorm.after == 0
    neg = next(node for node in again.model.graph.node if node.op_type == "Neg")
    assert neg.input[0] == "w"


def test_names_of_copies_are_free() -> None:
    """Whatever has them: a value, or an initializer that nothing reads."""
    nodes = [
        conv("w", "a"),
        batchnorm("a", "y", prefix="bn1"),
        conv("w", "w_2"),
        batchnorm("w_2", "z", prefix="bn2"),
    ]
    original = built(nodes, ["y", "z"], w_3=np.ones(2, "f4"))
    assert folded(original).report.batchnorm.after == 0
