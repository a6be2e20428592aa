"""What was tried in vain is tried again where something that was looked at has changed, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from convbn.fuse.plan.attempts import Attempts
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value, View
from convbn.fuse.view.edits import Bypass, SetConstant
from convbn.fuse.view.ops import Other

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


def test_without_a_footprint_it_is_tried_every_time() -> None:
    view = chain(3)
    attempts = Attempts()
    attempts.note(view, view.nodes[1], NO, None, thorough=True)
    assert not attempts.in_vain(view.nodes[1], thorough=False)
    assert attempts.refusals["n1"] is NO
