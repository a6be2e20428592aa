"""What was tried in vain is tried again where something that was looked at has changed, and only there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.fuse.fold import fold
from convbn.fuse.plan.attempts import Attempts
from convbn.fuse.plan.planner import _beside
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.edits import Bypass, SetConstant
from convbn.fuse.view.op import Other
from convbn.fuse.view.view import View

NO = Refusal(Reason.TOO_FAR, "for the test")


def chain(length: int) -> View:
    """Nodes in a row, each with a constant at slot 1."""
    nodes: list[Node] = []
    value = Value("x")
    for index in range(length):
        constant = Value(f"c{index}", (1,), constant=Constant.of(np.ones(1, "f4")))
        node = Node(f"n{index}", Other("op"), [value, constant], [])
        for slot, operand in enumerate((value, constant)):
            operand.readers.append(Reader(node, slot))
        value = Value(f"v{index}", producer=node)
        node.outputs.append(value)
        nodes.append(node)
    return View(nodes, pure=True)


def tried(view: View, *, thorough: bool) -> tuple[Attempts, Node]:
    """An attempt at node 5 that looked at nodes 4 to 6."""
    attempts, node = Attempts(), view.nodes[5]
    attempts.note(view, node, NO, {id(n): n for n in view.nodes[4:7]}, thorough=thorough)
    return attempts, node


def test_with_nothing_changed_it_is_in_vain() -> None:
    attempts, node = tried(chain(12), thorough=True)
    assert attempts.in_vain(node, thorough=True)
    assert attempts.in_vain(node, thorough=False)


def test_a_thorough_attempt_is_not_covered_by_a_quick_one() -> None:
    attempts, node = tried(chain(12), thorough=False)
    assert attempts.in_vain(node, thorough=False)
    assert not attempts.in_vain(node, thorough=True)


@pytest.mark.parametrize(
    ("changed", "again"), [(0, False), (2, False), (3, True), (5, True), (7, True), (9, False)]
)
def test_an_edit_counts_for_its_node_and_its_neighbours(changed: int, again: bool) -> None:
    view = chain(12)
    attempts, node = tried(view, thorough=True)
    view.apply(SetConstant(view.nodes[changed], 1, Constant.of(np.zeros(1, "f4"))))
    assert attempts.in_vain(node, thorough=True) is not again


def test_a_neighbour_that_goes_counts() -> None:
    view = chain(12)
    attempts, node = tried(view, thorough=True)
    view.apply(Bypass(view.nodes[7], 0))
    assert not attempts.in_vain(node, thorough=True)


def test_an_attempt_rests_on_its_node_and_what_gives_its_inputs() -> None:
    view = chain(3)
    assert _beside(view.nodes[1]) == {id(node): node for node in view.nodes[:2]}


def test_one_that_is_hopeless_does_not_end_the_round() -> None:
    """A BatchNorm that is too far from its layer is tried again once the products with 1 between them are gone."""
    nodes = [
        batchnorm("z", "h", prefix="hopeless"),
        helper.make_node("Tanh", ["h"], ["y1"]),
        batchnorm("x", "v0", prefix="far"),
        *(helper.make_node("Mul", [f"v{i}", "one"], [f"v{i + 1}"], name=f"mul{i}") for i in range(70)),
        helper.make_node("Conv", ["v70", "w"], ["y2"], name="conv"),
    ]
    numbers = {"w": random(3, 4, 1, 1), "one": np.ones((1, 4, 1, 1), "f4")}
    parameters = batchnorm_parameters(4, prefix="hopeless") | batchnorm_parameters(4, prefix="far")
    built = model(nodes, {"x": [1, 4, 3, 3], "z": [1, 4, 3, 3]}, ["y1", "y2"], numbers | parameters)
    report = fold(onnx.shape_inference.infer_shapes(built)).report
    assert [kept.name for kept in report.kept] == ["hopeless"]
    assert [folded.name for folded in report.folded] == ["far"]
