"""Where folds left their numbers, and how each of them was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convbn.bench.proof.claims import Alignment, Claim
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.bench.proof.local import Outcome
from convbn.bench.proof.prove import FoldPlan, _first_of, _followed, _outcomes_of, _placed, _seen
from convbn.bench.proof.regions import LinearLayer, Region


def node(op: str, reads: str, gives: str, name: str = "") -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), gives.split(), name=name)


def flow(*nodes: onnx.NodeProto) -> Dataflow:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, 1, None)

    stored = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in "wk"]
    return Dataflow(
        helper.make_model(helper.make_graph(list(nodes), "g", [value("x")], [value("y")], stored))
    )


def test_layers_that_were_merged_are_followed_into_what_took_them_in() -> None:
    after = {"kept": 0, "merged": 1}
    assert _followed(("gone",), after, [("gone", "merged")]) == ("gone", "merged")
    assert _followed(("kept",), after, [("kept", "merged")]) == ("kept",)
    assert _followed(("gone",), after, [("other", "merged")]) == ("gone",)
    assert _followed(("gone",), after, [("gone", "lost"), ("lost", "merged")]) == ("gone", "lost", "merged")
    assert _followed(("kept",), after, [("gone", "merged")]) == ("kept",)
    assert _followed((), after, [("gone", "merged")]) == ()
    assert _followed(("gone", "kept"), after, [("gone", "merged")]) == ("gone", "kept", "merged")


def test_what_edited_nodes_give_is_looked_for_behind_computed_weights() -> None:
    """``m`` is a weight that is computed; the convolution that reads it with the input is the last to be followed."""
    a = flow(
        node("Mul", "w k", "m"),
        node("Neg", "m", "n"),
        node("Conv", "x n", "c"),
        node("Relu", "c", "y"),
        node("Abs", "m", "o"),
    )
    assert _outcomes_of(a, [0], follow=False) == {"m"}
    assert _outcomes_of(a, [0], follow=True) == {"m", "n", "c", "o"}
    assert _outcomes_of(a, [3], follow=True) == {"y"}
    assert _outcomes_of(a, [], follow=True) == set()


def test_the_first_values_behind_that_are_known() -> None:
    a = flow(
        node("Mul", "x k", "a"),
        node("Relu", "a", "b"),
        node("Neg", "a", "c"),
        node("Add", "b c", "d"),
        node("Tanh", "d", "y"),
    )
    assert _first_of(a, [0], {"b", "y"}) == {"b", "y"}
    assert _first_of(a, [0], {"c", "y"}) == {"c", "y"}
    assert _first_of(a, [0], {"d", "y"}) == {"d"}
    assert _first_of(a, [0], {"a", "d"}) == {"a"}
    assert _first_of(a, [0], set()) == set()


LAYER = LinearLayer("x", np.ones(1), np.zeros(1), 1, 1, np.dtype(np.float32))
CLAIM, OTHER = Claim("a", "a", True), Claim("b", "b", True)


def region(claim: Claim = CLAIM, layer: LinearLayer | None = None) -> Region:
    return Region((), (claim,), (), (), 0, layer)


def outcome(claim: Claim, *, ok: bool = True, sight: float = 0.0, noticed: Any = ()) -> Outcome:
    return Outcome(claim, ok, 0.0, 1.0, "float32", sight, frozenset(noticed))


NORM = flow(node("BatchNormalization", "x w w w w", "b", "norm"), node("Relu", "b", "y"))


def seen(where: Region, one: Outcome, *others: Region, number: int = 0, fold: int = 0) -> str | None:
    return _seen(number, "norm", NORM, [one], [*others, where], {where: [(fold, ())]})


def test_a_layer_is_seen_where_one_percent_stands_over_the_bound() -> None:
    assert seen(region(layer=LAYER), outcome(CLAIM, sight=1.5)) == "float32"
    assert seen(region(layer=LAYER), outcome(CLAIM, sight=1.0)) is None
    assert seen(region(layer=LAYER), outcome(CLAIM, sight=9.0, ok=False)) is None
    assert seen(region(layer=LAYER), outcome(OTHER, sight=9.0)) is None
    assert seen(region(layer=LAYER), outcome(CLAIM, sight=9.0), number=1) is None
    assert seen(region(layer=LAYER), outcome(CLAIM, sight=9.0), region(OTHER)) == "float32"


def test_several_nodes_show_the_folds_that_were_put_off_and_noticed() -> None:
    assert seen(region(), outcome(CLAIM, noticed=[0])) == "float32"
    assert seen(region(), outcome(CLAIM, noticed=[1], sight=9.0)) is None
    assert seen(region(), outcome(CLAIM, noticed=[0], ok=False)) is None


def test_a_batchnorm_that_did_nothing_is_seen_by_what_it_gave() -> None:
    known = Claim("b", "x", True, computed=False)

    def shown(claim: Claim, **said: Any) -> str | None:
        return _seen(0, "norm", NORM, [outcome(claim, **said)], [], {})

    assert shown(known, sight=1.5) == "float32"
    assert shown(known, sight=1.0) is None
    assert shown(known, sight=9.0, ok=False) is None
    assert shown(Claim("y", "x", True, computed=False), sight=9.0) is None
    assert shown(Claim("b", "b", True), sight=9.0) is None
    assert _seen(0, "gone", NORM, [outcome(known, sight=9.0)], [], {}) is None


def test_a_fold_is_put_off_by_the_scales_that_it_stored() -> None:
    """A bias would show any error; the numbers of the original would show nothing of a fold."""
    before = flow(
        node("Conv", "x w", "c", "conv"),
        node("BatchNormalization", "c k k k k", "b", "norm"),
        node("Relu", "b", "y"),
    )
    stored = [
        numpy_helper.from_array(np.full(shape, 2, np.float32), name)
        for name, shape in (("w", (1, 1)), ("t", (1,)), ("k", (1, 1)))
    ]
    nodes = [node("Conv", "x w t", "d", "conv"), node("Mul", "d k", "b", "tail"), node("Relu", "b", "y")]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, None)], [], stored)
    after = Dataflow(helper.make_model(made))
    claim = Claim("b", "b", True)
    where = Region((0, 1), (claim,), ("w", "t", "k"), ("w", "t"), 1, None)
    alignment = Alignment(bool, {"x": "x", "b": "b"}, [claim])

    def placed(*into: str, region: Region = where) -> Any:
        plan = FoldPlan((("norm", into), ("gone", ("nobody",))))
        return _placed(before, after, alignment, [region], plan)

    assert placed("conv") == {where: [(0, ("w",))]}
    assert placed("tail") == {where: [(0, ("k",))]}  # all that it reads, where it stored nothing
    bare = Region((0, 1), (claim,), ("w", "t", "k"), ("t",), 1, None)
    assert placed("conv", region=bare) == {bare: [(0, ("t",))]}
    assert placed() == {where: [(0, ("k",))]}  # by what reads the BatchNorm's place
    last = Claim("y", "y", True)
    elsewhere = Region((2,), (last,), (), (), 0, None)
    assert placed("conv", region=elsewhere) == {}
    # What stands behind is asked only where the fold calls nodes by names that neither model has.
    behind = Alignment(bool, {"x": "x", "y": "y"}, [last])
    plan = FoldPlan((("norm", ("conv",)),))
    assert _placed(before, after, behind, [where, elsewhere], plan) == {where: [(0, ("w",))]}
    plan = FoldPlan((("norm", ("inlined",)),))
    assert _placed(before, after, behind, [where, elsewhere], plan) == {elsewhere: [(0, ())]}
