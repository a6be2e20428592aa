"""Which values of two models stand for each other, and what a plan frees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convbn.bench.proof.claims import Claim, align, changed_values, named_alike, open_pairs
from convbn.bench.proof.graph.dataflow import Dataflow


def node(op: str, reads: str, gives: str, name: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), gives.split(), name=name, **attributes)


def flow(
    nodes: Sequence[onnx.NodeProto],
    outputs: str = "y",
    stored: Mapping[str, object] | None = None,
    inputs: str = "x",
) -> Dataflow:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, 1, None)

    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in (stored or {}).items()]
    graph = helper.make_graph(
        nodes, "g", [value(n) for n in inputs.split()], [value(n) for n in outputs.split()], tensors
    )
    return Dataflow(helper.make_model(graph))


def said(
    one: Dataflow, other: Dataflow, changed: set[str] | None, given_up: set[str] | None = None
) -> list[Claim]:
    return align(one, other, changed, given_up or ()).claims


HALF = {"k": np.float32([0.5]), "m": np.float32([0.25])}


def test_a_node_that_does_the_same_with_fewer_inputs_is_not_the_same() -> None:
    one = flow([node("Clip", "x k", "y")], stored=HALF)
    other = flow([node("Clip", "x k k", "y")], stored=HALF)
    assert said(one, other, set()) == [Claim("y", "y", True)]


def test_texts_are_compared_as_texts() -> None:
    def labels(*words: str) -> Dataflow:
        return flow([node("Equal", "x k", "y")], stored={"k": np.array(words, object)})

    assert said(labels("first", "second"), labels("first", "second"), set()) == []
    assert said(labels("first", "second"), labels("first", "third"), set()) == [Claim("y", "y", True)]


def test_nan_is_the_same_as_itself_and_minus_zero_is_not_zero() -> None:
    def times(number: float, kind: int | None) -> Dataflow:
        made = flow([node("Mul", "x k", "y")], stored={"k": np.float32([number])})
        if kind is not None:
            made.constants["k"].CopyFrom(helper.make_tensor("k", kind, [1], [number]))
        return made

    for kind in (None, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        assert said(times(np.nan, kind), times(np.nan, kind), set()) == []
        assert said(times(0.0, kind), times(-0.0, kind), set()) != []


def test_an_input_that_only_one_of_both_has_is_no_constant() -> None:
    one = flow([node("Mul", "x k", "y")], stored=HALF)
    other = flow([node("Mul", "x k", "y")], inputs="x k")
    assert said(one, other, set()) == [Claim("y", "y", True)]


def test_what_hangs_on_what_has_to_be_shown_is_the_same_behind_it() -> None:
    def tail(k: str) -> Dataflow:
        return flow([node("Mul", f"x {k}", "a"), node("Relu", "a", "b"), node("Tanh", "b", "y")], stored=HALF)

    made = align(tail("k"), tail("m"), set())
    assert made.claims == [Claim("a", "a", True)]
    assert made.same == {"x": "x", "a": "a", "b": "b", "y": "y"}


def test_a_value_that_was_freed_may_serve_and_is_given_up_where_it_does_not() -> None:
    one = flow([node("Mul", "x k", "a"), node("Mul", "a m", "y")], stored=HALF)
    other = flow([node("Mul", "x m", "a"), node("Mul", "a k", "y")], stored=HALF)
    assert said(one, other, {"a"}) == [Claim("a", "a", False), Claim("y", "y", True)]
    assert said(one, other, {"a"}, {"a"}) == [Claim("y", "y", True)]
    # Nothing known of the plan frees every value but an output.
    assert said(one, other, None) == [Claim("a", "a", False), Claim("y", "y", True)]
    assert said(one, other, set(), {"a"}) == [Claim("a", "a", True), Claim("y", "y", True)]
    assert align(one, other, {"a"}, {"a"}).same == {"x": "x", "y": "y"}


def test_what_is_read_in_the_place_of_another_value_has_to_be_it() -> None:
    """A BatchNorm that went: what stands in front of it is read where its own output was."""
    one = flow([node("Mul", "x k", "a"), node("Mul", "a m", "b"), node("Relu", "b", "y")], stored=HALF)
    other = flow([node("Mul", "x k", "a"), node("Relu", "a", "y")], stored=HALF)
    shown = Claim("y", "y", True)
    assert said(one, other, set()) == [Claim("b", "a", True, computed=False), shown]
    assert said(one, other, {"b"}) == [shown]
    # The same of an input of the graph.
    first = flow([node("Mul", "x k", "a"), node("Relu", "a", "y")], stored=HALF)
    assert said(first, flow([node("Relu", "x", "y")]), set()) == [
        Claim("a", "x", True, computed=False),
        shown,
    ]


def test_a_stored_number_is_no_value_that_another_may_stand_for() -> None:
    one = flow([node("Mul", "x k", "a"), node("Add", "a m", "y")], stored=HALF)
    other = flow([node("Mul", "x k", "a"), node("Add", "x a", "y")], stored=HALF)
    assert said(one, other, set()) == [
        Claim("a", "x", True, computed=False),
        Claim("y", "y", True),
    ]


def test_a_twin_gives_the_same_name_by_the_same_operator_of_the_same_domain() -> None:
    one = flow([node("Mul", "x k", "a"), node("Mul", "a m", "b"), node("Relu", "b", "y")], stored=HALF)
    for other in (node("Tanh", "a", "y"), node("Relu", "a", "y", domain="own")):
        renamed = flow([node("Mul", "x k", "a"), other], stored=HALF)
        # No twin reads there, so nothing says what is read.
        assert said(one, renamed, set()) == [Claim("y", "y", True)]


def test_a_slot_that_the_twin_has_not_says_nothing() -> None:
    one = flow([node("Clip", "x k", "y")], stored=HALF)
    other = flow([node("Mul", "x k", "a"), node("Clip", "x k a", "y")], stored=HALF)
    assert open_pairs(one, other, set()) == []
    assert said(one, other, set()) == [Claim("y", "y", True)]


def test_attributes_are_compared_in_any_order() -> None:
    first, second = (
        node("Gemm", "x k", "y", alpha=2.0, beta=0.5),
        node("Gemm", "x k", "y", beta=0.5, alpha=2.0),
    )
    del second.attribute[:]
    second.attribute.extend(reversed(first.attribute))
    assert said(flow([first], stored=HALF), flow([second], stored=HALF), set()) == []


def test_open_pairs_are_what_the_plan_frees_and_both_models_have() -> None:
    one = flow([node("Mul", "x k", "a"), node("Mul", "a m", "b"), node("Relu", "b", "y")], stored=HALF)
    other = flow(
        [node("Mul", "x m", "a"), node("Neg", "a", "new"), node("Neg", "new", "b"), node("Relu", "b", "y")],
        stored=HALF,
    )
    assert open_pairs(one, other, {"a", "b"}) == [("a", "a"), ("b", "b")]
    assert open_pairs(one, other, {"a"}) == [("a", "a")]
    assert open_pairs(one, other, None) == [("a", "a"), ("b", "b")]
    assert open_pairs(one, other, set()) == []


def test_values_are_named_alike_by_name_or_else_by_their_readers() -> None:
    """``y`` is an output by its own name, though what reads it read ``a`` before."""
    one = flow([node("Mul", "x k", "a"), node("Mul", "a m", "y"), node("Relu", "a", "z")], "y z", HALF)
    other = flow([node("Mul", "x m", "y"), node("Relu", "y", "z")], "y z", HALF)
    assert named_alike(one, other) == [("y", "y"), ("z", "z")]
    # No output: by who reads it.
    inner = flow([node("Mul", "x m", "y"), node("Relu", "y", "z")], "z", HALF)
    assert named_alike(one, inner) == [("a", "y"), ("z", "z")]
    renamed = flow([node("Mul", "x m", "t"), node("Relu", "t", "z")], "t z", HALF)
    assert named_alike(one, renamed) == [("a", "t"), ("z", "z")]
    assert named_alike(one, flow([node("Neg", "x", "t"), node("Neg", "t", "u")], "u")) == []


def diamond() -> Dataflow:
    return flow(
        [
            node("Mul", "x k", "a", "first"),
            node("Relu", "a", "b", "left"),
            node("Tanh", "a", "c", "right"),
            node("Add", "b c", "d", "join"),
            node("Relu", "d", "e", "last"),
            node("Neg", "e", "y", "end"),
        ],
        stored=HALF,
    )


def test_between_the_nodes_of_a_merge_lie_those_that_hang_on_one_and_lead_to_another() -> None:
    assert changed_values(diamond(), [], [("first", "join")]) == {"a", "b", "c"}
    assert changed_values(diamond(), [], [("left", "join")]) == {"b"}
    assert changed_values(diamond(), [], [("left", "end")]) == {"b", "d", "e"}
    assert changed_values(diamond(), [], [("left", "right")]) == set()
    assert changed_values(diamond(), [], [("left", "last"), ("first", "right")]) == {"a", "b", "d"}
    assert changed_values(diamond(), ["c"], [("first", "left")]) == {"a", "c"}
    assert changed_values(diamond(), ["y"], [("last", "end")]) == {"e"}  # an output is the same
    assert changed_values(diamond(), [], [("first", "nobody")]) is None
    assert changed_values(diamond(), [], [()]) == set()
    assert changed_values(diamond(), [], [("join", "first")]) == {"a", "b", "c"}  # in any order


def test_outputs_that_one_of_both_leaves_out_change_nothing() -> None:
    one = flow([node("MaxPool", "x", "y indices", kernel_shape=[2])])
    other = flow([node("MaxPool", "x", "y", kernel_shape=[2]), node("Print", "y", "")])
    assert said(one, other, set()) == said(other, one, set()) == []


def test_a_reader_of_its_own_says_nothing_and_the_next_one_does() -> None:
    one = flow([node("Mul", "x k", "a"), node("Mul", "a m", "b"), node("Relu", "b", "y")], stored=HALF)
    other = flow([node("Mul", "x m", "t"), node("Neg", "t", "own"), node("Relu", "t", "y")], stored=HALF)
    assert said(one, other, {"a"}) == [Claim("b", "t", True)]
