"""What counts as a branch of a sum or a layer of a chain, and what a file may state that is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold
from convbn.fuse.options import FuseOptions

X = {"x": [1, 6, 6, 6]}


def conv(source: str, target: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, *names], [target], name=target, **attributes)


def add(left: str, right: str, target: str = "y", kind: str = "Add") -> onnx.NodeProto:
    return helper.make_node(kind, [left, right], [target], name=target)


def average(kernel: list[int], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("AveragePool", ["x"], ["q"], name="q", kernel_shape=kernel, **attributes)


def built(
    nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], **more: np.ndarray
) -> onnx.ModelProto:
    numbers = {name: random(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    return onnx.shape_inference.infer_shapes(model(nodes, X, ["y"], {**numbers, **more}))


def stays(graph: onnx.ModelProto, **options: Any) -> Folding:
    result = fold(graph, options=FuseOptions(**options))
    assert operators(result.model) == operators(graph)
    assert not result.report.merged
    return result


def same(graph: onnx.ModelProto, left: list[str]) -> Folding:
    """Fold, compare the outputs, and look at the operators that are left."""
    result = fold(graph)
    assert operators(result.model) == left
    rng = np.random.default_rng(3)
    feeds = {
        value.name: rng.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]).astype("f4")
        for value in graph.graph.input
    }
    assert relative_error(run(graph, feeds), run(result.model, feeds)) < 2e-6
    return result


# --- numbers of no convolution ------------------------------------------------------------------------

FULL, POINT = (6, 6, 3, 3), (6, 6, 1, 1)
BROKEN: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "a bias of another length": ({"a": FULL, "c": (3,)}, {}),
    "a bias of one number": ({"a": FULL, "c": (1,)}, {}),
    "a bias of two axes": ({"a": FULL, "c": (6, 1)}, {}),
    "no bias, a scalar": ({"a": FULL, "c": ()}, {}),
    "no dilation": ({"a": FULL}, {"dilations": [0, 0]}),
    "one axis without dilation": ({"a": FULL}, {"dilations": [1, 0]}),
    "a negative dilation": ({"a": FULL}, {"dilations": [-1, -1]}),
    "no stride": ({"a": FULL}, {"strides": [0, 0]}),
    "a negative stride": ({"a": FULL}, {"strides": [1, -1]}),
    "a stride that no image has": ({"a": FULL}, {"strides": [1 << 31, 1]}),
    "groups that do not divide": ({"a": FULL}, {"group": 4}),
    "no groups": ({"a": FULL}, {"group": 0}),
    "negative groups": ({"a": FULL}, {"group": -1}),
    "an empty kernel": ({"a": (6, 6, 0, 3)}, {}),
    "no output channels": ({"a": (0, 6, 3, 3)}, {}),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("both", [False, True])
def test_a_convolution_that_cannot_run_is_no_branch(name: str, both: bool) -> None:
    shapes, attributes = BROKEN[name]
    twin = conv("x", "q", "b", pads=[1] * 4, **(attributes if both else {}))
    nodes = [conv("x", "p", *shapes, pads=[1] * 4, **attributes), twin]
    stays(built([*nodes, add("p", "q")], {**shapes, "b": shapes["a"]}))
    stays(built([*nodes, add("q", "p", kind="Sub")], {**shapes, "b": shapes["a"]}))


@pytest.mark.parametrize("name", BROKEN)
def test_a_convolution_that_cannot_run_is_no_layer_of_a_chain(name: str) -> None:
    shapes, attributes = BROKEN[name]
    broken = conv("x", "p", *shapes, **attributes)
    stays(built([broken, conv("p", "y", "w")], {**shapes, "w": (6, shapes["a"][0], 1, 1)}))
    broken = conv("p", "y", *shapes, **attributes)
    stays(built([conv("x", "p", "w"), broken], {**shapes, "w": POINT}))


def test_strides_whose_product_no_file_can_hold_stay_apart() -> None:
    wide = {"strides": [1 << 40, 1 << 40]}
    stays(built([conv("x", "p", "a", **wide), conv("p", "y", "b", **wide)], {"a": FULL, "b": POINT}))


@pytest.mark.parametrize(
    "pool",
    [
        average([0, 0]),
        average([1, 0]),
        average([-1, -1]),
        average([1, 1], strides=[0, 0]),
        average([1, 1], dilations=[0, 0]),
        average([2, 2], dilations=[0, 0]),
    ],
)
def test_an_average_over_nothing_is_no_branch(pool: onnx.NodeProto) -> None:
    strides = next((list(a.ints) for a in pool.attribute if a.name == "strides"), [1, 1])
    stays(
        built(
            [conv("x", "p", "a"), pool, add("p", "q")],
            {"a": POINT},
        )
    )
    stays(built([conv("x", "p", "a", strides=strides), pool, add("p", "q")], {"a": POINT}))


# --- branches that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sum", "chain"])
def test_a_bias_that_is_fed_stays(kind: str) -> None:
    last = [conv("x", "q", "b"), add("p", "q")] if kind == "sum" else [conv("p", "y", "b")]
    graph = built([conv("x", "p", "a", "c"), *last], {"a": POINT, "b": POINT})
    graph.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [6]))
    same(graph, operators(graph))
    other = [conv("x", "q", "b", "c"), add("p", "q")] if kind == "sum" else [conv("p", "y", "b", "c")]
    graph = built([conv("x", "p", "a"), *other], {"a": POINT, "b": POINT})
    graph.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [6]))
    same(graph, operators(graph))


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_a_product_along_another_axis_is_no_branch(shape: tuple[int, ...]) -> None:
    """Height, width and channels are of one size, so that only the axis tells."""
    mul = helper.make_node("Mul", ["x", "k"], ["q"], name="q")
    same(built([conv("x", "p", "a"), mul, add("p", "q")], {"a": POINT, "k": shape}), ["Conv", "Mul", "Add"])


def test_a_product_along_the_channels_is_one() -> None:
    mul = helper.make_node("Mul", ["x", "k"], ["q"], name="q")
    same(built([conv("x", "p", "a"), mul, add("p", "q")], {"a": POINT, "k": (6, 1, 1)}), ["Conv"])


def test_a_product_of_two_values_is_no_branch() -> None:
    for sources in (["x", "x"], ["x", "r"]):
        mul = helper.make_node("Mul", sources, ["q"], name="q")
        relu = [helper.make_node("Relu", ["x"], ["r"])] if "r" in sources else []
        graph = built([conv("x", "p", "a"), *relu, mul, add("p", "q")], {"a": POINT})
        same(graph, operators(graph))


def test_a_batchnorm_that_trains_is_no_branch() -> None:
    bn = batchnorm("x", "q", training_mode=1)
    bn.output.extend(["m", "v"])
    stays(built([conv("x", "p", "a"), bn, add("p", "q")], {"a": POINT}, **batchnorm_parameters(6)))


@pytest.mark.parametrize("seen", [True, False])
def test_a_node_with_more_outputs_that_are_seen_is_no_branch(seen: bool) -> None:
    """No convolution has a second output, but a file may say so, and it would go with the first."""
    nodes = [conv("x", "p", "a"), conv("x", "q", "b"), add("p", "q"), helper.make_node("Relu", ["p2"], ["r"])]
    for node in nodes[:2]:
        node.output.append(f"{node.name}2")
    graph = built(nodes if seen else nodes[:3], {"a": POINT, "b": POINT})
    assert len(fold(graph).report.merged) == (0 if seen else 1)


def test_an_operator_without_a_rule_is_no_branch() -> None:
    tanh = helper.make_node("Tanh", ["x"], ["q"], name="q")
    same(built([conv("x", "p", "a"), tanh, add("p", "q")], {"a": POINT}), ["Conv", "Tanh", "Add"])


def test_convolutions_of_a_constant_stay() -> None:
    """Their data is known, and so is their sum; but nothing here computes a convolution."""
    nodes = [conv("k", "p", "a"), conv("k", "q", "b"), add("p", "q", "s"), add("s", "x")]
    stays(built(nodes, {"a": POINT, "b": POINT}, k=random(1, 6, 6, 6)))
    stays(
        built(
            [conv("k", "p", "a"), conv("p", "s", "b"), add("s", "x")],
            {"a": POINT, "b": POINT},
            k=random(1, 6, 6, 6),
        )
    )


def test_convolutions_without_data_stay() -> None:
    for nodes in (
        [conv("", "p", "a"), conv("x", "q", "b"), add("p", "q")],
        [conv("", "p", "a"), conv("p", "y", "b")],
        [conv("x", "p", "a"), conv("", "y", "b")],
    ):
        stays(built(nodes, {"a": POINT, "b": POINT}))


# --- sums as trees ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sources", [["p", ""], ["", "p"], ["", ""]])
@pytest.mark.parametrize("kind", ["Add", "Sub"])
def test_a_sum_without_an_operand_is_none(sources: list[str], kind: str) -> None:
    half = helper.make_node(kind, sources, ["s"], name="s")
    stays(built([conv("x", "p", "a"), half, conv("x", "q", "b"), add("q", "s")], {"a": POINT, "b": POINT}))


def test_a_value_added_to_itself_is_one_summand() -> None:
    nodes = [conv("x", "p", "a"), add("x", "x", "d"), add("p", "d")]
    same(built(nodes, {"a": POINT}), ["Conv", "Add", "Add"])


@pytest.mark.parametrize("sources", [("x", "k"), ("k", "x")])
def test_a_sum_with_a_constant_is_no_part_of_the_tree(sources: tuple[str, str]) -> None:
    nodes = [conv("x", "p", "a"), add(*sources, "s"), add("p", "s")]
    same(built(nodes, {"a": POINT, "k": (1, 6, 6, 6)}), ["Conv", "Add", "Add"])


@pytest.mark.parametrize("kind", ["Add", "Sub"])
def test_of_a_whole_tree_the_first_convolution_takes_the_others(kind: str) -> None:
    """Not each part of the sum by itself: what stays is one and the same from the first merge on."""
    nodes = [conv("x", name, f"{name}.w") for name in ("c0", "c1", "c2")]
    nodes += [add("c1", "c2", "s", kind), add("c0", "s", "y", kind)]
    result = same(built(nodes, {f"c{i}.w": POINT for i in range(3)}), ["Conv"])
    assert [entry.into for entry in result.report.merged] == ["c0", "c0"]


@pytest.mark.parametrize("first", ["chain", "sum"])
def test_what_was_merged_takes_a_map_beside_it_later(first: str) -> None:
    """It still says along which axis its channels lie."""
    mul = helper.make_node("Mul", ["x", "k"], ["m"], name="m")
    if first == "chain":
        nodes = [conv("x", "p", "a"), conv("p", "q", "b"), mul, add("q", "m")]
    else:
        nodes = [conv("x", "p", "a"), conv("x", "q", "b"), add("p", "q", "s"), mul, add("s", "m")]
    same(built(nodes, {"a": POINT, "b": POINT, "k": (6, 1, 1)}), ["Conv"])
