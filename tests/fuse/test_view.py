"""The view by itself: what may be edited, and how it follows an edit."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.fuse.fold import fold
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.linear import Linear
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.edits import Bypass, Evaluate, Replace, SetConstant
from convbn.fuse.view.op import Op, Other
from convbn.fuse.view.view import View

LOCK = Refusal(Reason.HOOKED, "for the test")


def number(*shape: int) -> Constant:
    return Constant.of(np.ones(shape, "f4"))


def call(name: str, *inputs: Value | None, op: Op | None = None) -> Node:
    """A node with one output, ``v.NAME``, that reads these."""
    node = Node(name, op or Other("op"), list(inputs), [])
    for slot, value in enumerate(inputs):
        if value is not None:
            value.readers.append(Reader(node, slot))
    node.outputs.append(Value(f"v.{name}", producer=node))
    return node


def test_an_operator_without_channels_has_no_axis_of_them() -> None:
    assert Other("Tanh").output_axis_of(4) is None
    assert Linear(1).output_axis_of(None) is None
    assert Linear(1).output_axis_of(3) == 2


# --- check -----------------------------------------------------------------------------------------------


def test_locks_hold_for_the_edits_they_name() -> None:
    node = call("n", Value("x"), Value("w", (2,), constant=number(2)))
    view = View([node], pure=True)
    edits = {
        "bypass": [Bypass(node), Evaluate(node, number(1)), Replace(node, Other("new"), ())],
        1: [SetConstant(node, 1, number(2))],
        2: [SetConstant(node, 2, number(2))],
    }
    for lock in edits:
        node.locks = {lock: LOCK}
        for name, several in edits.items():
            assert [view.check(edit) for edit in several] == [LOCK if name == lock else None] * len(several)


@pytest.mark.parametrize(("pure", "replaceable"), [(True, False), (False, True), (False, False)])
def test_only_a_pure_graph_changes_operators(pure: bool, replaceable: bool) -> None:
    node = call("n", Value("x"))
    refusal = View([node], pure=pure, replaceable=replaceable).check(Replace(node, Other("new"), ()))
    assert refusal is not None
    assert refusal.reason is Reason.NOT_A_MODULE


def test_a_module_takes_parameters_of_the_same_shape_only() -> None:
    node = call("n", Value("x"), Value("w", (1,), constant=number(1)))
    wider = SetConstant(node, 1, number(4))
    refusal = View([node], pure=True, replaceable=False).check(wider)
    assert refusal is not None
    assert refusal.reason is Reason.NOT_A_MODULE
    assert "[4]" in refusal.detail
    assert View([node], pure=True).check(wider) is None
    assert View([node], pure=True, replaceable=False).check(SetConstant(node, 1, number(1))) is None
    assert View([node], pure=True, replaceable=False).check(SetConstant(node, 2, number(4))) is None


@pytest.mark.parametrize("cloneable", [True, False])
def test_a_parameter_with_another_reader_is_changed_only_as_a_copy(cloneable: bool) -> None:
    weight = Value("w", (1,), constant=Constant((1,), lambda: np.ones(1, "f4"), cloneable=cloneable))
    first = call("first", weight)
    edit = SetConstant(first, 0, number(1))
    assert View([first]).check(edit) is None
    second = call("second", weight)
    refusal = View([first, second]).check(edit)
    if cloneable:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal.reason is Reason.PARAMETER_SHARED
        assert refusal.detail == "'w' of op 'first' is also used by op 'second'"


def test_a_parameter_that_one_node_reads_twice_is_shared_with_itself() -> None:
    node = call("n", *[Value("w", (1,), constant=Constant((1,), lambda: np.ones(1), cloneable=False))] * 2)
    refusal = View([node]).check(SetConstant(node, 0, number(1)))
    assert refusal is not None
    assert "another call of it" in refusal.detail


# --- apply -----------------------------------------------------------------------------------------------


def test_a_node_without_data_cannot_be_bypassed() -> None:
    node = call("n", None, Value("c", constant=number(1)))
    view = View([node])
    with pytest.raises(ValueError, match="has no input to be bypassed to"):
        view.apply(Bypass(node))


def test_a_bypass_hands_its_readers_and_its_observer_on() -> None:
    x = Value("x")
    first = call("first", x)
    second = call("second", first.outputs[0], Value("c", constant=number(1)))
    third = call("third", second.outputs[0], second.outputs[0])
    second.outputs[0].observed = "an output"
    view = View([first, second, third])
    view.apply(Bypass(second))
    source = first.outputs[0]
    assert view.nodes == [first, third]
    assert third.inputs == [source, source]
    assert [(r.node, r.slot) for r in source.readers] == [(third, 0), (third, 1)]
    assert source.observed == "an output"


def test_what_is_observed_already_stays_so() -> None:
    first = call("first", Value("x"))
    second = call("second", first.outputs[0])
    first.outputs[0].observed = "seen before"
    second.outputs[0].observed = "seen"
    View([first, second]).apply(Bypass(second))
    assert first.outputs[0].observed == "seen before"


def test_what_nobody_reads_any_more_goes_with_its_absent_operands() -> None:
    made = call("made", None, Value("x"))
    kept = call("kept", None)
    kept.outputs[0].observed = "an output"
    other = call("other", made.outputs[0], kept.outputs[0])
    last = call("last", Value("y"), other.outputs[0])
    view = View([made, kept, other, last])
    view.apply(Bypass(last))
    assert view.nodes == [kept]
    assert kept.outputs[0].readers == []


def test_a_node_with_another_output_that_is_read_stays() -> None:
    made = call("made", Value("x"))
    made.outputs.append(Value("v.second", producer=made))
    last = call("last", Value("y"), made.outputs[0])
    user = call("user", made.outputs[1])
    view = View([made, last, user])
    view.apply(Bypass(last))
    assert view.nodes == [made, user]


def test_a_constant_at_a_new_slot_leaves_the_slots_between_empty() -> None:
    node = call("n", Value("x"))
    View([node]).apply(SetConstant(node, 3, number(2)))
    assert node.inputs[1:3] == [None, None]
    assert node.input(3) is not None
    assert node.input(4) is None
    made = node.inputs[3]
    assert made is not None
    assert (made.name, made.shape, [(r.node, r.slot) for r in made.readers]) == ("n.3", (2,), [(node, 3)])


def test_a_new_constant_leaves_the_old_one_to_its_other_readers() -> None:
    weight = Value("w", (2,), constant=number(2))
    first, second = call("first", Value("x"), weight), call("second", weight, weight)
    View([first, second]).apply(SetConstant(second, 1, number(3)))
    assert [(r.node, r.slot) for r in weight.readers] == [(first, 1), (second, 0)]
    assert second.inputs[0] is weight
    assert second.inputs[1] is not None
    assert (second.inputs[1].name, second.inputs[1].shape) == ("w", (3,))


def test_a_replacement_reads_its_own_operands_and_no_others() -> None:
    x, w = Value("x"), Value("w", (1,), constant=number(1))
    node = call("n", x, w, x)
    View([node], pure=True).apply(Replace(node, Elementwise(Arithmetic.ADD), (None, x, number(5))))
    assert node.op == Elementwise(Arithmetic.ADD)
    assert w.readers == []
    assert [(r.node, r.slot) for r in x.readers] == [(node, 1)]
    assert node.inputs[0] is None
    assert node.inputs[2] is not None
    assert node.inputs[2].shape == (5,)


def test_an_evaluated_node_leaves_its_constant_and_what_only_it_read_goes() -> None:
    made = call("made", Value("x"))
    node = call("n", made.outputs[0], made.outputs[0], None)
    reader = call("reader", node.outputs[0])
    view = View([made, node, reader])
    constant = number(7)
    view.apply(Evaluate(node, constant))
    assert view.nodes == [reader]
    output = reader.inputs[0]
    assert output is not None
    assert output.constant is constant
    assert output.producer is None


def test_every_edit_marks_the_neighbourhood_at_its_own_time() -> None:
    first = call("first", Value("x"))
    second = call("second", first.outputs[0], Value("c", constant=number(1)))
    third = call("third", second.outputs[0])
    fourth = call("fourth", third.outputs[0])
    beside = call("beside", first.outputs[0])
    view = View([first, second, third, fourth, beside])
    view.apply(SetConstant(second, 1, number(1)))
    assert [n.changed for n in view.nodes] == [1, 1, 1, 0, 1]
    view.apply(SetConstant(fourth, 1, number(1)))
    assert [n.changed for n in view.nodes] == [1, 1, 2, 2, 1]


# --- constants ---------------------------------------------------------------------------------------------


def test_a_constant_writes_itself_where_that_can_be_done_in_place() -> None:
    written: list[np.ndarray] = []
    constant = Constant((2, 3), lambda: np.ones((2, 3), "f4"), write=written.append)
    target = np.zeros((2, 3), "f4")
    constant.write(target)
    assert written[0] is target
    turned = np.zeros((3, 2), "f4").T
    constant.write(turned)
    assert len(written) == 1
    assert (turned == 1).all()


def test_only_what_was_folded_into_knows_more_than_it_stores() -> None:
    stored = number(2)
    folded = Constant((2,), lambda: np.ones(2, "f4"), exact=lambda: np.full(2, 1 + 1e-12))
    assert (stored.folded, folded.folded) == (False, True)
    assert stored.exact().dtype == np.float64
    assert folded.exact()[0] != 1
    assert folded.dtype == np.float32


def test_what_a_fold_looked_at_is_freed_at_once() -> None:
    """Nodes and values refer to each other, and hold weights: no search for cycles is needed for them to go."""

    def nodes() -> int:
        return sum(type(one) in (Node, Value) for one in gc.get_objects())

    whole = model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            batchnorm("c", "n"),
            helper.make_node("Relu", ["n"], ["y"]),
        ],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {"w": random(4, 3, 3, 3), **batchnorm_parameters(4)},
    )
    gc.collect()
    before, enabled = nodes(), gc.isenabled()
    gc.disable()
    try:
        assert len(fold(whole).report.folded) == 1
        assert nodes() == before
    finally:
        if enabled:
            gc.enable()
