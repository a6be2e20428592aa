"""Convolutions of the pieces of a split, concatenated, become one in groups, where each piece goes one way alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import Writer, model, operators, random, relative_error, run
from support.views import Graph, node_of, numbers

from convbn.fuse.fold import fold
from convbn.fuse.operators.concat import Concat
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.split import Split
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.merging.pieces import merge_pieces
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.op import Window
from convbn.fuse.view.view import View


def built(
    pieces: int = 2,
    *,
    biases: str = "all",
    axes: tuple[int, int] = (1, 1),
    order: tuple[int, ...] = (),
    outputs: tuple[int, ...] = (),
    seen: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    w = Writer()
    parts = [f"x.{i}" for i in range(pieces)]
    w.nodes.append(helper.make_node("Split", ["x"], parts, name="split", axis=axes[0], num_outputs=pieces))
    convs = []
    for i in order or range(pieces):
        size, kernel = (outputs or (6,) * pieces)[i], attributes.get("kernel", 1)
        weight = random(size, 4, kernel, kernel, seed=i)
        bias = [random(size, seed=i + 9)] if biases == "all" or (biases == "first" and not i) else []
        further = {key: value for key, value in attributes.items() if key != "kernel"}
        convs.append(w("Conv", parts[i], weight, *bias, **further))
    joined = w("Concat", *convs, axis=axes[1])
    outputs_seen = [w.batchnorm(joined, 6 * pieces) if axes == (1, 1) and not outputs else w("Relu", joined)]
    extra = {"piece": parts[0], "conv": convs[0]}.get(seen)
    if extra is not None:
        outputs_seen.append(w("Sigmoid", extra))
    if seen == "output":
        outputs_seen.append(convs[0])
    return model(w.nodes, {"x": [2, 4 * (pieces if axes[0] == 1 else 1), 6, 6]}, outputs_seen, w.constants)


def merged(made: onnx.ModelProto, **options: Any) -> list[str]:
    result = fold(made, options=FuseOptions(**options))
    feeds = {"x": random(*[d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim], seed=7)}
    assert relative_error(run(made, feeds), run(result.model, feeds)) < 1e-5
    onnx.checker.check_model(result.model, full_check=True)
    return operators(result.model)


@pytest.mark.parametrize("biases", ["all", "first", "none"])
@pytest.mark.parametrize("pieces", [2, 3])
@pytest.mark.parametrize("attributes", [{}, {"kernel": 3, "pads": [1] * 4, "strides": [2, 2]}])
def test_one_convolution_in_groups(pieces: int, biases: str, attributes: dict[str, Any]) -> None:
    made = built(pieces, biases=biases, **attributes)
    assert merged(made) == ["Conv"]
    folded = fold(made)
    (node,) = folded.model.graph.node
    assert {a.name: a.i for a in node.attribute}["group"] == pieces
    assert [entry.rule for entry in folded.report.merged] == ["merge-split-convs"]
    assert not folded.report.batchnorm.after


def test_a_concatenation_that_cannot_become_another_operator_stays() -> None:
    graph = Graph()
    whole = graph.add("split", Split(1), graph.x, outputs=2)
    window = Window((1, 1), (1, 1), (0, 0), (0, 0))
    convs = [
        graph.add(f"c{i}", Conv(1, 1, window), piece, numbers(4, 4, 1, 1))
        for i, piece in enumerate(node_of(whole).outputs)
    ]
    joined = node_of(graph.add("joined", Concat(1), *convs))
    refusal = joined.locks["bypass"] = Refusal(Reason.KERNEL_PATTERN, "part of a kernel")
    view = View(graph.nodes, pure=True)
    assert not list(merge_pieces(view, FuseOptions()))
    assert joined.locks.pop("bypass") is refusal
    assert len(list(merge_pieces(view, FuseOptions()))) == 1


@pytest.mark.parametrize(
    "case",
    [
        {"seen": "piece"},
        {"seen": "conv"},
        {"seen": "output"},
        {"order": (1, 0)},
        {"outputs": (6, 5)},
        {"axes": (1, 2)},
        {"axes": (2, 1)},
    ],
    ids=str,
)
def test_what_stays_apart(case: dict[str, Any]) -> None:
    assert merged(built(**case)).count("Conv") == 2


def test_it_can_be_switched_off() -> None:
    assert merged(built(), skip=("merge-split-convs",)).count("Conv") == 2


def test_a_weight_that_flows_stays() -> None:
    made = built()
    made.graph.node[1].input[1] = "fed"
    made.graph.input.append(helper.make_tensor_value_info("fed", 1, [6, 4, 1, 1]))
    result = fold(made)
    assert operators(result.model).count("Conv") == 2
    feeds = {"x": random(2, 8, 6, 6, seed=7), "fed": np.ones((6, 4, 1, 1), np.float32)}
    assert relative_error(run(made, feeds), run(result.model, feeds)) < 1e-5


def test_other_values_beside_the_convolutions_stay() -> None:
    w = Writer()
    w.nodes.append(helper.make_node("Split", ["x"], ["a", "b"], name="split", axis=1, num_outputs=2))
    y = w("Concat", w("Conv", "a", random(4, 4, 1, 1)), "b", axis=1)
    made = model(w.nodes, {"x": [2, 8, 6, 6]}, [w.batchnorm(y, 8)], w.constants)
    assert merged(made).count("Concat") == 1
