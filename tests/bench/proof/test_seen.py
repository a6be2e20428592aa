"""What counts as seen: in a body, behind a call of another name, where rounding chooses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

import convbn
from convbn.bench.equivalence.compare import compare
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.bench.proof.prove import FoldPlan


def node(op: str, *names: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(names[:-1]), [names[-1]], name=f"{op}.{names[-1]}", **attributes)


def hows(report: convbn.Report) -> dict[str, str | None]:
    return {fold["name"]: fold["how"] for fold in report.verify["proof"]["folds"]}


def chosen(*, taken: bool) -> onnx.ModelProto:
    """A BatchNorm in a branch, whose convolution has the weights of the other branch, and one in front of it."""
    value = helper.make_tensor_value_info
    then = [helper.make_node("Conv", ["r", "w"], ["c"], name="inner"), batchnorm("c", "t", prefix="branch")]
    other = [helper.make_node("Conv", ["r", "w"], ["e"], name="plain")]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["d"], name="conv"),
        batchnorm("d", "n", prefix="front"),
        node("Relu", "n", "r"),
        node("ReduceMax", "r", "most", keepdims=0),
        node("Greater" if taken else "Less", "most", "k", "m"),
        helper.make_node(
            "If",
            ["m"],
            ["y"],
            name="if",
            then_branch=helper.make_graph(then, "then", [], [value("t", 1, None)]),
            else_branch=helper.make_graph(other, "else", [], [value("e", 1, None)]),
        ),
    ]
    held = {"k": np.float32(-1.0).reshape(()), "v": random(4, 3, 1, 1, seed=7), "w": random(6, 4, 3, 3)}
    held |= batchnorm_parameters(6, prefix="branch") | batchnorm_parameters(4, prefix="front", seed=5)
    return model(nodes, {"x": [1, 3, 8, 8]}, ["y"], held)


def test_a_branch_that_is_not_taken_shows_no_fold() -> None:
    """Both branches read the same weights; an error in those of the branch that runs says nothing of the other."""
    assert hows(convbn.fuse(chosen(taken=True)).report) == {"front": "float64", "branch": "float64"}
    report = convbn.fuse(chosen(taken=False)).report
    assert hows(report) == {"front": "float64", "branch": None}
    assert report.batchnorm.after == 0


def test_nodes_go_by_their_names_or_by_what_they_give() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], name="same"),
        helper.make_node("Relu", ["b"], ["c"], name="same"),
        helper.make_node("Relu", ["c"], ["y"], name="Relu(a)"),
    ]
    flow = Dataflow(model(nodes, {"x": [1]}, ["y"], {}))
    assert flow.report_names() == {"Relu(a)": 0, "same": 1, "same (2)": 2, "Relu(a) (2)": 3}


def test_a_body_is_read_by_its_own_nodes() -> None:
    flow = Dataflow(chosen(taken=True))
    place = flow.report_names()["inner"]
    assert place == flow.report_names()["if"] == 5
    assert flow.stored_by(place, ("inner",)) == ("r", "w")
    assert flow.stored_by(place, ("inner", "branch", "conv"))[:3] == ("r", "w", "c")
    assert flow.stored_by(place, ("conv",)) == flow.reads[place]
    assert flow.stored_by(0, ("inner",)) == ("x", "v")


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_weights_whose_squares_are_no_numbers_are_bounded(size: float) -> None:
    """(1e-30)² is 0 in float32 and (1e25)² is infinite."""
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="conv", group=2), batchnorm("c", "y")]
    held = {"w": np.float32(size) * random(4, 3, 3, 3), **batchnorm_parameters(6)}
    for name in ("bn.beta", "bn.mean"):
        held[name] = (held[name] * size).astype(np.float32)
    assert hows(convbn.fuse(model(nodes, {"x": [1, 4, 8, 8]}, ["y"], held)).report)["bn"] is not None


def test_a_layer_in_a_function_is_found_behind_it() -> None:
    """Written out, its nodes have other names in the proof than in the fold; what stands behind has gone as well."""
    body = [
        helper.make_node("Conv", ["a", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["o"]),
    ]
    function = helper.make_function(
        "own", "Block", ["a", "w", "g", "b", "m", "v"], ["o"], body, [helper.make_opsetid("", 20)]
    )
    names = [f"bn.{name}" for name in ("gamma", "beta", "mean", "var")]
    nodes = [
        helper.make_node("Block", ["x", "w", *names], ["n"], domain="own", name="block"),
        node("Sub", "n", "k", "s"),
        node("Relu", "s", "y"),
    ]
    held = {"w": random(6, 3, 3, 3), "k": np.full(1, 1e4, np.float32), **batchnorm_parameters(6)}
    built = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], held, functions=[function])
    assert list(hows(convbn.fuse(built).report).values()) == ["float64"]


def test_what_rounding_chooses_is_judged_at_what_the_choice_reads() -> None:
    def larger(factor: float) -> onnx.ModelProto:
        nodes = [
            node("Mul", "x", "k", "z"),
            node("Concat", "x", "z", "both", axis=1),
            node("ArgMax", "both", "y", axis=1, keepdims=0),
        ]
        built = model(nodes, {"x": [4, 1]}, ["y"], {"k": np.full(1, factor, np.float32)})
        built.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
        return built

    inputs = [{"x": np.float32([[1], [2], [-3], [4]])}]
    for plan in (None, FoldPlan()):
        answer = compare(larger(1.0), larger(1.0 + 2e-7), inputs=inputs, plan=plan)
        assert answer.equal
        assert "what the ArgMax before output 'y' reads" in answer.reason
    assert compare(larger(1.0), larger(1.01), inputs=inputs).status == "different"


@pytest.mark.parametrize("spoilt", [False, True], ids=["right", "off by 1 %"])
def test_an_output_that_an_identity_gives_on_is_what_the_identity_reads(spoilt: bool) -> None:
    """Of three BatchNorms in a row the second is an output, and what they read has another reader."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("MaxPool", ["c"], ["p"], name="pool", kernel_shape=[2, 2]),
        *(batchnorm(*names, prefix="bn") for names in (("p", "a"), ("a", "b"), ("b", "y"), ("p", "d"))),
        batchnorm("d", "z", prefix="other"),
    ]
    for number, made in enumerate(nodes):
        made.name = f"{made.op_type} {number}"
    stored = {
        "w": random(4, 4, 3, 3),
        **batchnorm_parameters(4, seed=1),
        **batchnorm_parameters(4, prefix="other", seed=2),
    }
    stored = {name: abs(array) if name.endswith("gamma") else array for name, array in stored.items()}
    original = model(nodes, {"x": [2, 4, 6, 6]}, ["b", "y", "z"], stored)
    folded, report = convbn.fuse(original, options=convbn.FuseOptions(verify=False))
    assert [n.op_type for n in folded.graph.node].count("Identity") == 1
    for tensor in folded.graph.initializer if spoilt else ():
        if len(tensor.dims) == 4:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name)
            )
    plan = FoldPlan(tuple((fold.name, fold.into) for fold in report.folded), report.moved, report.merges)
    assert convbn.verify(original, folded, plan=plan).status == ("different" if spoilt else "equal")
