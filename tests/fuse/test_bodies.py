"""Bodies of If, Loop and Scan: folds happen inside one graph, and never across its border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random, relative_error, run

from convbn.fuse.fold import Folding, fold

SHAPE = [1, 6, 5, 5]
FEEDS = {"x": random(*SHAPE, seed=5)}


def info(
    name: str, shape: Sequence[Any] | None = SHAPE, kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def conv(source: str, target: str, weight: str = "w", name: str = "") -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], name=name or f"conv_{target}", pads=[1] * 4)


def body(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    initializers: Mapping[str, np.ndarray] | None = None,
) -> onnx.GraphProto:
    stored = [numpy_helper.from_array(array, key) for key, array in (initializers or {}).items()]
    return helper.make_graph(list(nodes), name, list(inputs), list(outputs), stored)


def if_node(then: onnx.GraphProto, other: onnx.GraphProto, target: str = "y") -> onnx.NodeProto:
    return helper.make_node("If", ["flag"], [target], name="if", then_branch=then, else_branch=other)


def counter() -> list[onnx.ValueInfoProto]:
    """What every body of a Loop is given first."""
    return [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL)]


def loop_node(inner: onnx.GraphProto, carried: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    return helper.make_node("Loop", ["times", "", *carried], list(outputs), name="loop", body=inner)


def count(graph: onnx.GraphProto, operator: str) -> int:
    total, waiting = 0, [graph]
    while waiting:
        current = waiting.pop()
        total += sum(node.op_type == operator for node in current.node)
        waiting += [a.g for node in current.node for a in node.attribute if a.HasField("g")]
    return total


def check(
    nodes: Sequence[onnx.NodeProto],
    left: int,
    outputs: Sequence[str] = ("y",),
    feeds: Mapping[str, np.ndarray] | None = None,
    **initializers: np.ndarray,
) -> Folding:
    """Fold, compare under both values of the flag, fold again."""
    stored = {"w": 0.3 * random(6, 6, 3, 3), "times": np.int64(3), **batchnorm_parameters(6), **initializers}
    feeds = feeds or FEEDS
    built = model(nodes, {name: array.shape for name, array in feeds.items()}, list(outputs), stored)
    if any(node.op_type == "If" for node in nodes):
        built.graph.input.append(info("flag", [], TensorProto.BOOL))
    for output in built.graph.output:
        if not output.type.tensor_type.HasField("shape"):
            # What a Loop carries may change its shape, so inference gives it none; the checker wants one.
            rank = 5 if output.name == "z" else 4
            output.CopyFrom(info(output.name, [None] * rank))
    before = built.SerializeToString(deterministic=True)
    result = fold(built)
    assert built.SerializeToString(deterministic=True) == before
    assert result.report.batchnorm.after == left, result.report.kept
    assert count(result.model.graph, "BatchNormalization") == left
    onnx.checker.check_model(result.model, full_check=True)
    for flag in (False, True):
        given = {
            **feeds,
            **({"flag": np.array(flag)} if "flag" in {v.name for v in built.graph.input} else {}),
        }
        assert relative_error(run(built, given), run(result.model, given)) < 1e-5
    again = fold(result.model)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
    return result


def reasons(result: Folding) -> set[str]:
    return {str(kept.reason) for kept in result.report.kept}


# --- If ---------------------------------------------------------------------------------------------


def test_one_weight_captured_by_both_branches() -> None:
    """Each branch folds its own BatchNorm into its own copy; the graph around them reads the weight as it was."""
    then = body("then", [conv("x", "a"), batchnorm("a", "t")], [info("t")])
    other = body("else", [conv("x", "a"), batchnorm("a", "e", prefix="b2")], [info("e")])
    nodes = [conv("x", "plain"), if_node(then, other)]
    result = check(nodes, 0, ["y", "plain"], **batchnorm_parameters(6, prefix="b2", seed=8))
    graph = result.model.graph
    assert "w" in {tensor.name for tensor in graph.initializer}
    branches = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    weights = [branch.node[0].input[1] for branch in branches]
    assert "w" not in weights
    held = [{tensor.name for tensor in branch.initializer} for branch in branches]
    assert all(weight in names for weight, names in zip(weights, held, strict=True))


def test_weights_of_the_branch_itself() -> None:
    stored = {"v": random(6, 6, 3, 3, seed=4), **batchnorm_parameters(6, prefix="own", seed=3)}
    then = body(
        "then", [conv("x", "a", "v"), batchnorm("a", "t", prefix="own")], [info("t")], initializers=stored
    )
    other = body("else", [helper.make_node("Neg", ["x"], ["e"])], [info("e")])
    result = check([if_node(then, other)], 0)
    names = next(a.g for a in result.model.graph.node[0].attribute if a.g.name == "then").initializer
    assert {tensor.name for tensor in names} >= {"v"}
    assert not any("own" in tensor.name for tensor in names)


def test_a_body_in_a_body() -> None:
    inner = body("inner", [conv("x", "a"), batchnorm("a", "t")], [info("t")])
    inner_else = body("inner_else", [helper.make_node("Neg", ["x"], ["n"])], [info("n")])
    then = body("then", [if_node(inner, inner_else, "u")], [info("u")])
    other = body("else", [helper.make_node("Neg", ["x"], ["e"])], [info("e")])
    check([if_node(then, other)], 0)


def test_a_map_that_a_branch_captures_goes_backward() -> None:
    """The BatchNorm's readers stand in the branches, and only its producer needs to change."""
    then = body("then", [helper.make_node("Relu", ["n"], ["t"])], [info("t")])
    other = body("else", [helper.make_node("Neg", ["n"], ["e"])], [info("e")])
    check([conv("x", "c"), batchnorm("c", "n"), if_node(then, other)], 0)


def test_a_map_does_not_go_forward_into_a_branch() -> None:
    then = body("then", [helper.make_node("Conv", ["n", "w"], ["t"])], [info("t", None)])
    other = body("else", [helper.make_node("Conv", ["n", "w"], ["e"])], [info("e", None)])
    result = check([helper.make_node("Sigmoid", ["x"], ["s"]), batchnorm("s", "n"), if_node(then, other)], 1)
    assert "another graph" in result.report.kept[0].detail


def test_a_conv_before_the_branch_stays_without_its_batchnorm() -> None:
    then = body("then", [batchnorm("c", "t")], [info("t")])
    other = body("else", [helper.make_node("Neg", ["c"], ["e"])], [info("e")])
    assert reasons(check([conv("x", "c"), if_node(then, other)], 1)) == {"other-scope"}


def test_a_batchnorm_behind_the_branches_stays() -> None:
    """Both branches would have to take it, and an If is asked for no such thing."""
    then = body("then", [conv("x", "t")], [info("t")])
    other = body("else", [conv("x", "e", "w")], [info("e")])
    result = check([if_node(then, other, "c"), batchnorm("c", "y")], 1)
    assert "If 'if'" in result.report.kept[0].detail


def test_a_conv_that_the_branch_also_gives_out_stays() -> None:
    """The branch has two outputs: the convolution as it is, and normalised."""
    then = body("then", [conv("x", "a"), batchnorm("a", "t")], [info("t"), info("a")])
    other = body("else", [helper.make_node("Neg", ["x"], ["e"]), conv("x", "f")], [info("e"), info("f")])
    node = helper.make_node("If", ["flag"], ["y", "z"], name="if", then_branch=then, else_branch=other)
    assert reasons(check([node], 1, ["y", "z"])) == {"observed-elsewhere"}


def test_a_stream_read_by_a_branch_is_not_compensated() -> None:
    then = body("then", [helper.make_node("Relu", ["c"], ["t"])], [info("t")])
    other = body("else", [helper.make_node("Neg", ["c"], ["e"])], [info("e")])
    nodes = [
        conv("x", "c"),
        batchnorm("c", "n"),
        helper.make_node("Sigmoid", ["n"], ["z"]),
        if_node(then, other),
    ]
    assert reasons(check(nodes, 1, ["y", "z"])) == {"several-readers"}


def test_statistics_computed_outside_are_no_constants_inside() -> None:
    then = body("then", [conv("x", "a"), batchnorm("a", "t")], [info("t")])
    then.node[1].input[3] = "computed"
    other = body("else", [helper.make_node("Neg", ["x"], ["e"])], [info("e")])
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["computed"], keepdims=0)
    result = check([mean, if_node(then, other)], 1, axes=np.int64([0, 2, 3]))
    assert reasons(result) == {"parameters-not-constant"}


# --- Loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_a_value_carried_by_a_loop(own: bool) -> None:
    """``h ← bn(conv(h))``, three times: the weight, of the body or captured, takes the map in once."""
    stored = {"v": 0.3 * random(6, 6, 3, 3)} if own else {}
    inner = body(
        "body",
        [
            helper.make_node("Identity", ["go"], ["on"]),
            conv("h", "a", "v" if own else "w"),
            batchnorm("a", "next"),
        ],
        [info("on", [], TensorProto.BOOL), info("next")],
        [*counter(), info("h")],
        stored,
    )
    check([loop_node(inner, ["x"], ["y"])], 0)


def test_the_carried_value_itself_is_normalised() -> None:
    """In front of the BatchNorm stands what the last turn left: that cannot be scaled."""
    inner = body(
        "body",
        [
            helper.make_node("Identity", ["go"], ["on"]),
            batchnorm("h", "n"),
            helper.make_node("Tanh", ["n"], ["next"]),
        ],
        [info("on", [], TensorProto.BOOL), info("next")],
        [*counter(), info("h")],
    )
    result = check([loop_node(inner, ["x"], ["y"])], 1)
    assert reasons(result) == {"reads-the-input"}


def test_the_carried_value_goes_forward_inside() -> None:
    inner = body(
        "body",
        [
            helper.make_node("Identity", ["go"], ["on"]),
            batchnorm("h", "n"),
            helper.make_node("Conv", ["n", "w1"], ["next"], name="point"),
        ],
        [info("on", [], TensorProto.BOOL), info("next")],
        [*counter(), info("h")],
    )
    check([loop_node(inner, ["x"], ["y"])], 0, w1=0.3 * random(6, 6, 1, 1))


def test_a_batchnorm_of_what_is_carried_and_what_is_given_out() -> None:
    """The convolution is carried on as it is, and normalised for each turn's output: two readers."""
    inner = body(
        "body",
        [helper.make_node("Identity", ["go"], ["on"]), conv("h", "next"), batchnorm("next", "turn")],
        [info("on", [], TensorProto.BOOL), info("next"), info("turn")],
        [*counter(), info("h")],
    )
    assert reasons(check([loop_node(inner, ["x"], ["y", "z"])], 1, ["y", "z"])) == {"observed-elsewhere"}


def test_a_weight_that_is_carried_is_no_constant() -> None:
    """It starts as an initializer and changes every turn."""
    inner = body(
        "body",
        [
            helper.make_node("Identity", ["go"], ["on"]),
            conv("x", "a", "kernel"),
            batchnorm("a", "turn"),
            helper.make_node("Neg", ["kernel"], ["negated"]),
        ],
        [info("on", [], TensorProto.BOOL), info("negated", None), info("turn")],
        [*counter(), info("kernel", None)],
    )
    result = check([loop_node(inner, ["w"], ["z", "y"])], 1)
    assert reasons(result) == {"weight-not-constant"}


def test_a_batchnorm_behind_a_loop_stays() -> None:
    inner = body(
        "body",
        [helper.make_node("Identity", ["go"], ["on"]), conv("h", "next")],
        [info("on", [], TensorProto.BOOL), info("next")],
        [*counter(), info("h")],
    )
    assert reasons(check([loop_node(inner, ["x"], ["c"]), batchnorm("c", "y")], 1)) == {
        "producer-not-foldable"
    }


def test_a_conv_outside_captured_in_a_loop_stays() -> None:
    inner = body(
        "body",
        [
            helper.make_node("Identity", ["go"], ["on"]),
            batchnorm("c", "n"),
            helper.make_node("Add", ["h", "n"], ["next"]),
        ],
        [info("on", [], TensorProto.BOOL), info("next")],
        [*counter(), info("h")],
    )
    assert reasons(check([conv("x", "c"), loop_node(inner, ["x"], ["y"])], 1)) == {"other-scope"}


def test_an_if_inside_a_loop() -> None:
    then = body("then", [conv("h", "a"), batchnorm("a", "t")], [info("t")])
    other = body("else", [conv("h", "a"), batchnorm("a", "e", prefix="b2")], [info("e")])
    inner = body(
        "body",
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Equal", ["i", "one"], ["flag"]),
            if_node(then, other, "next"),
        ],
        [info("on", [], TensorProto.BOOL), info("next")],
        [*counter(), info("h")],
    )
    check(
        [loop_node(inner, ["x"], ["y"])],
        0,
        one=np.int64(1),
        **batchnorm_parameters(6, prefix="b2", seed=8),
    )


# --- Scan -------------------------------------------------------------------------------------------


def scan_node(inner: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str], slices: int = 1) -> Any:
    return helper.make_node(
        "Scan", list(inputs), list(outputs), name="scan", body=inner, num_scan_inputs=slices
    )


def test_slices_of_a_scan() -> None:
    """A state that is carried, and one slice of a sequence a turn: both go through layers of the body."""
    inner = body(
        "body",
        [
            conv("slice", "a"),
            batchnorm("a", "n"),
            helper.make_node("Add", ["state", "n"], ["next"]),
            conv("next", "b"),
            batchnorm("b", "out", prefix="b2"),
        ],
        [info("next"), info("out")],
        [info("state"), info("slice")],
    )
    feeds = {"x": FEEDS["x"], "sequence": random(4, *SHAPE, seed=6)}
    result = check(
        [scan_node(inner, ["x", "sequence"], ["y", "z"])],
        0,
        ["y", "z"],
        feeds,
        **batchnorm_parameters(6, prefix="b2", seed=8),
    )
    assert len(result.report.folded) == 2


def test_a_slice_that_is_normalised_stays() -> None:
    """Its rank is that of the sequence less one: axis 1 of the slice is axis 2 of what is scanned."""
    inner = body(
        "body",
        [batchnorm("slice", "n"), helper.make_node("Add", ["state", "n"], ["next"])],
        [info("next")],
        [info("state"), info("slice")],
    )
    feeds = {"x": FEEDS["x"], "sequence": random(4, *SHAPE, seed=6)}
    nodes = [scan_node(inner, ["x", "sequence"], ["y"])]
    assert reasons(check(nodes, 1, ["y"], feeds)) == {"reads-the-input"}


def test_a_conv_whose_result_is_scanned_stays() -> None:
    """``[6, 6, 5, 5]`` scanned along axis 0: the slices' axis 1 is no channel axis of the convolution."""
    inner = body(
        "body",
        [batchnorm("slice", "n"), helper.make_node("Add", ["state", "n"], ["next"])],
        [info("next", [6, 6, 5])],
        [info("state", [6, 6, 5]), info("slice", [6, 6, 5])],
    )
    nodes = [
        helper.make_node("Conv", ["rows", "w"], ["c"], pads=[1] * 4),
        scan_node(inner, ["x", "c"], ["y"]),
    ]
    feeds = {"x": random(6, 6, 5, seed=5), "rows": random(6, 6, 6, 5, seed=6)}
    assert reasons(check(nodes, 1, ["y"], feeds)) == {"reads-the-input"}
