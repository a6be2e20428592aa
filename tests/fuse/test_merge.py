"""Merging linear branches in ONNX graphs: what merges is equal, and what must not stays as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.algebra.kernels import Form, add_into, pointwise, union
from convbn.fuse.fold import Folding, fold
from convbn.fuse.frontends.onnx.reading.reader import read_view
from convbn.fuse.operators.registry import MERGES
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.merging.cost import multiply_adds, pays
from convbn.fuse.plan.planner import make_plan
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.op import Window

C = 6
F32_BOUND = 2e-6


class Branch(NamedTuple):
    """A convolution of ``source``; kernel and pads by axis, pads as (begin…, end…)."""

    kernel: tuple[int, ...] = (3, 3)
    pads: tuple[int, ...] = (1, 1, 1, 1)
    groups: int = 1
    dilations: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 1)
    bias: bool = True
    source: str = "x"
    outputs: int = C

    def node(self, name: str) -> onnx.NodeProto:
        inputs = [self.source, f"{name}.weight", *([f"{name}.bias"] if self.bias else [])]
        return helper.make_node(
            "Conv",
            inputs,
            [name],
            name=f"conv_{name}",
            group=self.groups,
            pads=self.pads,
            dilations=self.dilations,
            strides=self.strides,
            kernel_shape=self.kernel,
        )

    def parameters(self, name: str) -> dict[str, np.ndarray]:
        seed = sum(map(ord, name))
        weight = random(self.outputs, C // self.groups, *self.kernel, seed=seed)
        found = {f"{name}.weight": weight}
        return {**found, f"{name}.bias": random(self.outputs, seed=seed + 1)} if self.bias else found


POINT = Branch(kernel=(1, 1), pads=(0, 0, 0, 0))
DEPTHWISE = Branch(groups=C)


def built(
    branches: dict[str, Branch],
    nodes: list[onnx.NodeProto],
    *,
    outputs: tuple[str, ...] = ("y",),
    initializers: dict[str, np.ndarray] | None = None,
    inputs: dict[str, list[Any]] | None = None,
) -> onnx.ModelProto:
    """The branches over x, then ``nodes``."""
    constants = dict(initializers or {})
    for name, branch in branches.items():
        constants |= branch.parameters(name)
    convs = [branch.node(name) for name, branch in branches.items()]
    return model([*convs, *nodes], inputs or {"x": ["n", C, "h", "w"]}, outputs, constants)


def op(kind: str, left: str, right: str, target: str) -> onnx.NodeProto:
    return helper.make_node(kind, [left, right], [target], name=f"{kind.lower()}_{target}")


def merged(graph: onnx.ModelProto, **options: Any) -> Folding:
    """Fold, and check what must hold after every fold."""
    before = graph.SerializeToString(deterministic=True)
    result = fold(graph, options=FuseOptions(**options))
    assert graph.SerializeToString(deterministic=True) == before, "the caller's model was changed"
    onnx.checker.check_model(result.model, full_check=True)
    read = {name for node in result.model.graph.node for name in node.input}
    assert {tensor.name for tensor in result.model.graph.initializer} <= read, "an initializer nobody reads"
    again = fold(result.model, options=FuseOptions(**options))
    assert not again.report.merged
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
    return result


def check_equal(graph: onnx.ModelProto, result: Folding, *shapes: tuple[int, ...]) -> None:
    for shape in shapes or ((2, C, 9, 9), (1, C, 8, 13)):
        feeds = {"x": random(*shape)}
        assert relative_error(run(graph, feeds), run(result.model, feeds)) < F32_BOUND


def merges(graph: onnx.ModelProto, *shapes: tuple[int, ...], left: list[str] | None = None) -> Folding:
    result = merged(graph)
    check_equal(graph, result, *shapes)
    assert Counter(operators(result.model)) == Counter(left or ["Conv"])
    return result


def stays(graph: onnx.ModelProto, **options: Any) -> None:
    result = merged(graph, **options)
    assert not result.report.merged
    assert operators(result.model) == operators(graph)


def pair(a: Branch, b: Branch, kind: str = "Add") -> onnx.ModelProto:
    return built({"a": a, "b": b}, [op(kind, "a", "b", "y")])


PAIRS = {
    "3x3+1x1": (Branch(), POINT),
    "1x1+3x3": (POINT, Branch()),
    "no biases": (Branch(bias=False), POINT._replace(bias=False)),
    "one bias": (Branch(bias=False), POINT),
    "3x3+3x3": (Branch(), Branch()),
    "5x5+1x3": (Branch(kernel=(5, 5), pads=(2, 2, 2, 2)), Branch(kernel=(1, 3), pads=(0, 1, 0, 1))),
    "strided": (Branch(strides=(2, 2)), POINT._replace(strides=(2, 2))),
    "uneven strides": (Branch(strides=(2, 1)), POINT._replace(strides=(2, 1))),
    "dilated": (Branch(dilations=(2, 2), pads=(2, 2, 2, 2)), POINT),
    "dilation of a single tap": (Branch(), POINT._replace(dilations=(3, 2))),
    "one dilation": (
        Branch(kernel=(5, 5), dilations=(2, 2), pads=(4, 4, 4, 4)),
        Branch(dilations=(2, 2), pads=(2, 2, 2, 2)),
    ),
    "uneven pads": (Branch(kernel=(2, 4), pads=(0, 2, 1, 1)), POINT),
    "valid and cropped": (Branch(pads=(0, 0, 0, 0)), Branch(kernel=(2, 3), pads=(0, 0, -1, 0))),
    "depthwise": (DEPTHWISE, POINT._replace(groups=C)),
    "grouped": (Branch(groups=2), POINT._replace(groups=2)),
    "depthwise into grouped": (Branch(groups=2), DEPTHWISE),
    "grouped into dense": (Branch(), POINT._replace(groups=3)),
    "depthwise with a multiplier": (
        DEPTHWISE._replace(outputs=2 * C),
        POINT._replace(groups=2, outputs=2 * C)._replace(kernel=(1, 1), groups=C),
    ),
}


@pytest.mark.parametrize("kind", ["Add", "Sub"])
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "valid and cropped"])
def test_pairs_merge(name: str, kind: str) -> None:
    result = merges(pair(*PAIRS[name], kind))
    (entry,) = result.report.merged
    assert (entry.names, entry.into, entry.rule) == (
        ("add_y" if kind == "Add" else "sub_y", "conv_b"),
        "conv_a",
        MERGES[0],
    )


@pytest.mark.parametrize(("spatial", "size"), [(1, (2, C, 11)), (3, (1, C, 5, 6, 7))])
def test_other_ranks(spatial: int, size: tuple[int, ...]) -> None:
    ones = (1,) * spatial
    wide = Branch((3,) * spatial, (1,) * 2 * spatial, 1, ones, ones)
    point = Branch(ones, (0,) * 2 * spatial, 1, ones, ones)
    graph = built(
        {"a": wide, "b": point},
        [op("Add", "a", "b", "s"), op("Add", "s", "x", "y")],
        inputs={"x": [*size[:2], *("dhw"[:spatial])]},
    )
    merges(graph, size)


@pytest.mark.parametrize("nodes", [("x", "a"), ("a", "x")])
@pytest.mark.parametrize("kind", ["Add", "Sub"])
@pytest.mark.parametrize("groups", [1, 2, C])
def test_identity(nodes: tuple[str, str], kind: str, groups: int) -> None:
    result = merges(built({"a": Branch(groups=groups)}, [op(kind, *nodes, "y")]))
    assert [entry.rule for entry in result.report.merged] == ["merge-identity"]


def test_identity_under_one_dilated_kernel_off_centre() -> None:
    merges(
        built({"a": Branch(kernel=(3, 2), dilations=(2, 3), pads=(2, 0, 2, 3))}, [op("Add", "a", "x", "y")])
    )


SUMS = {
    "mobileone": ([("Add", "a", "b", "s"), ("Add", "s", "c", "t"), ("Add", "t", "x", "y")], ["Conv"]),
    "right-leaning": ([("Add", "b", "c", "s"), ("Add", "x", "s", "t"), ("Add", "a", "t", "y")], ["Conv"]),
    "balanced": ([("Sub", "a", "b", "s"), ("Sub", "c", "x", "t"), ("Sub", "s", "t", "y")], ["Conv"]),
    "a stranger between": (
        [("Add", "a", "r", "s"), ("Add", "s", "b", "t"), ("Sub", "t", "c", "y")],
        ["Conv", "Relu", "Add"],
    ),
    "subtracted from a stranger": (
        [("Sub", "r", "a", "s"), ("Sub", "s", "b", "t"), ("Add", "t", "c", "y")],
        ["Conv", "Relu", "Sub"],
    ),
    "signs far apart": (
        [("Sub", "r", "a", "s"), ("Sub", "b", "s", "t"), ("Sub", "c", "t", "y")],
        ["Conv", "Conv", "Relu", "Sub", "Sub"],
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_more(name: str) -> None:
    sums, left = SUMS[name]
    nodes = [helper.make_node("Relu", ["x"], ["r"]), *(op(*parts) for parts in sums)]
    used = any("r" in parts for parts in sums)
    graph = built({"a": Branch(), "b": POINT, "c": Branch(bias=False)}, nodes[0 if used else 1 :])
    result = merged(graph)
    check_equal(graph, result)
    assert Counter(operators(result.model)) == Counter(left)


def test_random_sums_keep_their_signs() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        branches = {name: [Branch(), POINT, DEPTHWISE][rng.integers(3)] for name in "abcd"}
        waiting, nodes = [*branches, "x", "r"], [helper.make_node("Relu", ["x"], ["r"])]
        while len(waiting) > 1:
            left, right = (waiting.pop(rng.integers(len(waiting))) for _ in range(2))
            waiting.append(f"s{len(waiting)}" if len(waiting) else "y")
            nodes.append(op(str(rng.choice(["Add", "Sub"])), left, right, waiting[-1]))
        graph = built(branches, nodes)
        result = merged(graph)
        check_equal(graph, result)
        assert result.report.merged


def test_batchnorm_beside_a_convolution() -> None:
    # RepVGG, MobileOne and FastViT train like this; x is the model's input, so no other way takes the BatchNorm.
    nodes = [
        batchnorm("x", "n"),
        batchnorm("a", "an", prefix="bn_a"),
        op("Add", "an", "n", "s"),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    constants = {**batchnorm_parameters(C), **batchnorm_parameters(C, prefix="bn_a", seed=5)}
    result = merges(built({"a": Branch(groups=2)}, nodes, initializers=constants), left=["Conv", "Relu"])
    assert result.report.batchnorm.after == 0
    assert [(f.name, f.into, f.rule) for f in result.report.folded][-1] == ("bn", ("conv_a",), "merge-affine")
    assert [entry.names for entry in result.report.merged] == [("add_s",)]


def test_product_beside_a_convolution() -> None:
    graph = built(
        {"a": Branch()},
        [op("Mul", "x", "k", "m"), op("Sub", "m", "a", "y")],
        initializers={"k": random(C, 1, 1)},
    )
    # The rank of the product must be known: a constant [C, 1, 1] lies along the channels of rank 4.
    assert merges(onnx.shape_inference.infer_shapes(graph)).report.merged[-1].names == ("sub_y", "mul_m")


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1], "count_include_pad": 1}, {}])
def test_average_pool(attributes: dict[str, Any]) -> None:
    pool = helper.make_node(
        "AveragePool", ["x"], ["p"], name="pool", kernel_shape=[3, 3], strides=[2, 2], **attributes
    )
    conv = Branch(strides=(2, 2), pads=tuple(attributes.get("pads", (0, 0, 0, 0))))
    result = merges(built({"a": conv}, [pool, op("Add", "p", "a", "y")]))
    (entry,) = result.report.merged
    assert (entry.names, entry.into, entry.rule) == (("add_y", "pool"), "conv_a", "merge-average-pool")


def test_average_pool_wider_than_the_kernel_stays() -> None:
    pool = helper.make_node("AveragePool", ["x"], ["p"], name="pool", kernel_shape=[3, 3], pads=[1] * 4)
    pool.attribute.append(helper.make_attribute("count_include_pad", 1))
    stays(built({"a": POINT._replace(groups=C)}, [pool, op("Add", "p", "a", "y")]))


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [1, 1, 1, 1], "count_include_pad": 1, "ceil_mode": 1},
        {"auto_pad": "SAME_UPPER", "count_include_pad": 1},
    ],
)
def test_average_pool_of_other_weights_at_the_border_stays(attributes: dict[str, Any]) -> None:
    pool = helper.make_node(
        "AveragePool", ["x"], ["p"], name="pool", kernel_shape=[3, 3], strides=[1, 1], **attributes
    )
    stays(built({"a": Branch()}, [pool, op("Add", "p", "a", "y")]))


NOT_PAIRS = {
    "strides differ": (Branch(strides=(2, 2), pads=(1, 1, 1, 1)), Branch(strides=(1, 1), pads=(1, 1, 1, 1))),
    "dilations differ": (Branch(), Branch(dilations=(2, 2), pads=(2, 2, 2, 2))),
    "taps between the taps": (
        Branch(dilations=(2, 2), pads=(2, 2, 2, 2)),
        POINT._replace(pads=(1, 1, -1, -1)),
    ),
    "kernels beside each other": (Branch(pads=(2, 2, 0, 0)), Branch(pads=(0, 0, 2, 2))),
    "a row and a column": (
        Branch(kernel=(3, 1), pads=(1, 0, 1, 0)),
        Branch(kernel=(1, 3), pads=(0, 1, 0, 1)),
    ),
    "depthwise beside a dense 1x1": (DEPTHWISE, POINT),
    "groups without a common one": (Branch(groups=2), Branch(groups=3)),
    "sizes differ and broadcast": (Branch(kernel=(9, 9), pads=(0, 0, 0, 0)), POINT),
    "channels broadcast": (Branch(outputs=1), POINT),
}


def form(branch: Branch) -> Form:
    half = len(branch.kernel)
    window = Window(branch.strides, branch.dilations, branch.pads[:half], branch.pads[half:])
    return Form((branch.outputs, C // branch.groups, *branch.kernel), branch.groups, window)


@pytest.mark.parametrize("name", NOT_PAIRS)
def test_pairs_that_stay(name: str) -> None:
    a, b = NOT_PAIRS[name]
    for first, second in ((a, b), (b, a)):
        found = union(form(first), form(second))
        assert found is None or not pays(found, [multiply_adds(form(first)), multiply_adds(form(second))])
    if min(*a.pads, *b.pads) >= 0:
        static = {"x": [1, C, 1 if name == "strides differ" else 9, 1 if name == "strides differ" else 9]}
        graph = built({"a": a, "b": b}, [op("Add", "a", "b", "y")], inputs=static)
        stays(graph)


@pytest.mark.parametrize("name", PAIRS)
def test_union_in_float64(name: str) -> None:
    """Against the definition: each kernel laid out at its own taps, group by group."""
    a, b = (form(branch) for branch in PAIRS[name])
    both = union(a, b)
    assert both is not None
    assert both == union(b, a)
    total, expected = np.zeros(both.shape), {}
    for part, factor in ((a, 2.0), (b, -1.0)):
        weight = random(*part.shape, dtype=np.float64)
        add_into(total, both, weight, part, factor)
        for index, number in np.ndenumerate(weight):
            key = where(part, index)
            expected[key] = expected.get(key, 0.0) + factor * number
    found = {where(both, index): number for index, number in np.ndenumerate(total) if number != 0}
    assert found == {key: number for key, number in expected.items() if number != 0}


def where(part: Form, index: tuple[int, ...]) -> tuple[int, ...]:
    """Output channel, input channel and place of a weight's element."""
    output, inner, *taps = index
    group = output // (part.shape[0] // part.groups)
    places = (
        tap * step - begin
        for tap, step, begin in zip(taps, part.window.dilations, part.window.begin, strict=True)
    )
    return (output, group * part.shape[1] + inner, *places)


def test_identity_needs_stride_1_equal_channels_and_the_same_size() -> None:
    for branch in (
        Branch(strides=(2, 2)),
        Branch(outputs=2 * C),
        Branch(pads=(1, 1, 0, 0)),
        Branch(pads=(2, 2, 2, 2)),
    ):
        assert union(form(branch), pointwise(branch.outputs, 2)) is None
    # A sum that broadcasts x over the one position, or the one channel, that the convolution leaves.
    small = {"x": [1, C, 3, 3]}
    stays(built({"a": Branch(pads=(0, 0, 0, 0))}, [op("Add", "a", "x", "y")], inputs=small))
    stays(built({"a": Branch(outputs=1)}, [op("Add", "a", "x", "y")], inputs=small))


def test_other_data_stays() -> None:
    relu = helper.make_node("Relu", ["x"], ["r"])
    graph = built(
        {"a": Branch()},
        [relu, Branch(source="r").node("b"), op("Add", "a", "b", "y")],
        initializers=Branch().parameters("b"),
    )
    stays(graph)
    stays(built({"a": Branch()}, [relu, op("Add", "a", "r", "y")]))
    # x + conv(conv(x)) is no sum of branches of one value.
    stays(
        built(
            {"a": Branch()},
            [Branch(source="a").node("b"), op("Add", "x", "b", "y")],
            initializers=Branch().parameters("b"),
        )
    )


def test_a_map_or_an_average_of_other_data_stays() -> None:
    relu = helper.make_node("Relu", ["x"], ["r"])
    pool = helper.make_node(
        "AveragePool", ["r"], ["p"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    )
    for node in (op("Mul", "r", "k", "p"), pool):
        constants = {"k": random(C, 1, 1)} if node.op_type == "Mul" else {}
        graph = built({"a": Branch()}, [relu, node, op("Add", "a", "p", "y")], initializers=constants)
        stays(onnx.shape_inference.infer_shapes(graph))


def test_a_branch_that_others_see_stays() -> None:
    add = op("Add", "a", "b", "s")
    branches = {"a": Branch(), "b": POINT}
    relu = helper.make_node("Relu", ["s"], ["y"])
    for name in "ab":
        stays(built(branches, [add, relu], outputs=("y", name)))
        stays(built(branches, [add, relu, helper.make_node("Sigmoid", [name], ["z"])], outputs=("y", "z")))
    stays(built({"a": Branch()}, [op("Add", "a", "a", "y")]))


def test_a_partial_sum_that_others_see_is_a_sum_of_its_own() -> None:
    nodes = [op("Add", "a", "b", "s"), op("Add", "s", "c", "y")]
    graph = built({"a": Branch(), "b": POINT, "c": Branch()}, nodes, outputs=("y", "s"))
    merges(graph, left=["Conv", "Conv", "Add"])


@pytest.mark.parametrize("weight", ["computed", "overridable", "automatic"])
def test_numbers_or_places_that_are_not_known_stay(weight: str) -> None:
    graph = pair(Branch(), POINT)
    if weight == "computed":
        shape = helper.make_tensor_value_info("b.weight", TensorProto.FLOAT, [C, C, 1, 1])
        del graph.graph.initializer[[t.name for t in graph.graph.initializer].index("b.weight")]
        graph.graph.input.append(shape)
    elif weight == "overridable":
        graph.graph.input.append(helper.make_tensor_value_info("b.weight", TensorProto.FLOAT, [C, C, 1, 1]))
    else:
        attributes = graph.graph.node[0].attribute
        del attributes[[a.name for a in attributes].index("pads")]
        attributes.append(helper.make_attribute("auto_pad", "SAME_LOWER"))
    stays(graph)


def body(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    )


def choice(then_nodes: list[onnx.NodeProto], else_nodes: list[onnx.NodeProto]) -> onnx.NodeProto:
    return helper.make_node(
        "If",
        ["flag"],
        ["y"],
        name="if",
        then_branch=body("then", then_nodes, "t"),
        else_branch=body("else", else_nodes, "e"),
    )


def test_branches_of_another_graph_stay_and_those_of_one_body_merge() -> None:
    inputs = {"x": [1, C, "h", "w"], "flag": []}
    initializers = {**Branch().parameters("a"), **POINT.parameters("b")}

    def graph(outer: list[onnx.NodeProto], inner: list[onnx.NodeProto]) -> onnx.ModelProto:
        nodes = [*outer, choice(inner, [helper.make_node("Relu", ["x"], ["e"])])]
        made = model(nodes, inputs, ["y"], initializers)
        made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
        return made

    convs = [Branch().node("a"), POINT.node("b")]
    across = graph(convs, [op("Add", "a", "b", "t")])
    assert not fold(across).report.merged
    within = graph([], [*convs, op("Add", "a", "b", "t")])
    result = fold(within)
    onnx.checker.check_model(result.model, full_check=True)
    then = next(a.g for a in result.model.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in then.node] == ["Conv"]
    for flag in (True, False):
        feeds = {"x": random(1, C, 7, 7), "flag": np.array(flag)}
        assert relative_error(run(within, feeds), run(result.model, feeds)) < F32_BOUND


def test_edits_of_a_body_stay_when_the_graph_around_it_gains_a_node() -> None:
    # x·1 goes, and as x is no name for an output, an Identity comes: the list of nodes is written anew.
    convs = [Branch().node("a"), POINT.node("b"), op("Add", "a", "b", "t")]
    nodes = [choice(convs, [helper.make_node("Relu", ["x"], ["e"])]), op("Mul", "x", "one", "z")]
    constants = {**Branch().parameters("a"), **POINT.parameters("b"), "one": np.ones((), np.float32)}
    graph = model(nodes, {"x": [1, C, 7, 7], "flag": []}, ["y", "z"], constants)
    graph.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, C, 7, 7]))
    result = merged(graph)
    assert operators(result.model) == ["If", "Identity"]
    then = next(a.g for a in result.model.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in then.node] == ["Conv"]
    feeds = {"x": random(1, C, 7, 7), "flag": np.array(True)}
    assert relative_error(run(graph, feeds), run(result.model, feeds)) < F32_BOUND


def test_bodies_may_use_one_name_for_their_inputs() -> None:
    def loop(name: str, source: str, target: str) -> onnx.NodeProto:
        def info(value: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(value, kind, shape)

        flow = [1, C, "h", "w"]
        branch = {
            key: Branch(source="state")._replace(kernel=key, pads=pads) for key, pads in KERNELS.items()
        }
        nodes = [b.node(f"{name}{i}") for i, b in enumerate(branch.values())]
        nodes += [
            op("Add", f"{name}0", f"{name}1", f"{name}s"),
            helper.make_node("Identity", ["go"], [f"{name}go"]),
        ]
        graph = helper.make_graph(
            nodes,
            name,
            [
                info("i", TensorProto.INT64, []),
                info("go", TensorProto.BOOL, []),
                info("state", TensorProto.FLOAT, flow),
            ],
            [info(f"{name}go", TensorProto.BOOL, []), info(f"{name}s", TensorProto.FLOAT, flow)],
        )
        for i, b in enumerate(branch.values()):
            parameters.update(b.parameters(f"{name}{i}"))
        return helper.make_node("Loop", ["trips", "", source], [target], name=name, body=graph)

    parameters: dict[str, np.ndarray] = {"trips": np.array(2)}
    nodes = [loop("first", "x", "m"), loop("second", "m", "y")]
    graph = model(nodes, {"x": [1, C, 6, 6]}, ["y"], parameters)
    # Inference does not say the shape of what a loop gives.
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, C, "h", "w"]))
    result = merged(graph)
    check_equal(graph, result, (1, C, 6, 6))
    bodies = [a.g for node in result.model.graph.node for a in node.attribute if a.name == "body"]
    assert [sorted(n.op_type for n in g.node) for g in bodies] == [["Conv", "Identity"]] * 2
    # By name the model cannot tell the two inputs apart; a graph of tensors can.
    for node in fold(gs.import_onnx(graph)).model.nodes:
        inner = node.attrs["body"]
        assert next(n for n in inner.nodes if n.op == "Conv").inputs[0] is inner.inputs[2]


KERNELS = {(3, 3): (1, 1, 1, 1), (1, 1): (0, 0, 0, 0)}


@pytest.mark.parametrize("locked", ["conv_a", "conv_b", "add_y"])
def test_a_node_that_the_frontend_cannot_edit_stays(locked: str) -> None:
    reading = read_view(pair(Branch(), POINT))
    node = next(node for node in reading.view.nodes if node.name == locked)
    node.locks["bypass"] = Refusal(Reason.HOOKED, "locked by this test")
    plan = make_plan(reading.view, FuseOptions())
    assert not plan.merged
    assert not plan.edits
    assert len(reading.view.nodes) == 3


def test_cost_at_its_limit() -> None:
    # A depthwise 3x3 of 6 channels takes 54 multiply-adds, of which the sum itself pays for 6.
    assert pays(form(DEPTHWISE), [40, 8])
    assert not pays(form(DEPTHWISE), [40, 7])


def test_shared_weights_are_read_before_any_edit_changes_them() -> None:
    # a, b and c have one weight; a and b are folded into and merged, c is folded into on its own.
    names = ("a", "b", "c")
    nodes = [helper.make_node("Conv", ["x", "w"], [name], name=name, pads=[1, 1, 1, 1]) for name in names]
    nodes += [batchnorm(name, f"{name}n", prefix=f"bn_{name}") for name in names]
    nodes += [op("Sub", "an", "bn", "y"), op("Mul", "cn", "x", "z")]
    constants = {"w": random(C, C, 3, 3)}
    for seed, name in enumerate(names):
        constants |= batchnorm_parameters(C, prefix=f"bn_{name}", seed=seed)
    graph = model(nodes, {"x": [1, C, 9, 9]}, ["y", "z"], constants)
    result = merges(graph, (1, C, 9, 9), left=["Conv", "Conv", "Mul"])
    assert result.report.batchnorm.after == 0


def evaluated(graph: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(onnx.reference.ReferenceEvaluator(graph).run(None, feeds))


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_dtypes(elem_type: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    branches = {"a": Branch(), "b": POINT}
    constants = {k: v.astype(dtype) for n, b in branches.items() for k, v in b.parameters(n).items()}
    nodes = [*(b.node(n) for n, b in branches.items()), op("Add", "a", "b", "y")]
    graph = model(nodes, {"x": [1, C, 9, 9]}, ["y"], constants, elem_type=elem_type)
    result = merged(graph)
    feeds = {"x": random(1, C, 9, 9, dtype=dtype)}
    # onnxruntime has no convolution in float64.
    values = [run(m, feeds) if dtype == np.float16 else evaluated(m, feeds) for m in (graph, result.model)]
    assert relative_error(*values) < (4e-3 if dtype == np.float16 else 1e-14)
    assert operators(result.model) == ["Conv"]


@pytest.mark.parametrize(("value", "dtype"), [(6e4, np.float16), (4e-5, np.float16), (np.inf, np.float32)])
def test_sums_that_the_dtype_cannot_hold_stay(value: float, dtype: Any) -> None:
    # 6e4 + 6e4 overflows; 2 · 2e-5 is below the smallest normal number of float16.
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = {
        f"{name}.weight": np.full((C, C, 1, 1), value / (2 if value < 1 else 1), dtype) for name in "ab"
    }
    plain = POINT._replace(bias=False)
    nodes = [plain.node("a"), plain.node("b"), op("Add", "a", "b", "y")]
    stays(model(nodes, {"x": [1, C, 4, 4]}, ["y"], constants, elem_type=elem_type))


def test_rules_can_be_switched_off() -> None:
    graph = built({"a": Branch(), "b": POINT}, [op("Add", "a", "b", "s"), op("Add", "s", "x", "y")])
    assert operators(merged(graph, skip=("merge-identity",)).model) == ["Conv", "Add"]
    assert operators(merged(graph, only=("merge-identity",)).model) == ["Conv", "Conv", "Add"]
    stays(graph, skip=MERGES)


def test_a_rule_that_is_off_does_not_end_the_search() -> None:
    graph = built(
        {"a": Branch()},
        [op("Add", "a", "x", "s"), op("Mul", "x", "k", "m"), op("Add", "s", "m", "y")],
        initializers={"k": random(C, 1, 1)},
    )
    graph = onnx.shape_inference.infer_shapes(graph)
    assert operators(merged(graph, skip=("merge-identity",)).model) == ["Conv", "Add"]


def test_the_first_goes_into_the_second_where_that_cannot_go() -> None:
    """What is subtracted from cannot give way, but it can take the other one in."""
    nodes = [helper.make_node("Sigmoid", ["x"], ["z"]), op("Sub", "b", "z", "t"), op("Add", "a", "t", "y")]
    result = merges(built({"a": Branch(), "b": POINT}, nodes), left=["Conv", "Sigmoid", "Sub"])
    (entry,) = result.report.merged
    assert (entry.names, entry.into) == (("add_y", "conv_a"), "conv_b")


def test_the_identity_costs_no_more_than_the_sum() -> None:
    """One tap, two places away, would become three; the sum pays for one, and the identity itself for none.

    The checker takes no pads below 0, and so no such model; the rule holds without it.
    """
    conv = helper.make_node("Conv", ["x", "w"], ["a"], name="conv_a", kernel_shape=[1, 1], pads=[0, 2, 0, -2])
    nodes = [conv, op("Add", "a", "x", "y")]
    graph = model(nodes, {"x": ["n", 1, "h", "w"]}, ["y"], {"w": random(1, 1, 1, 1)})
    assert not fold(graph).report.merged


def test_graphsurgeon_graph_is_left_alone() -> None:
    graph = gs.import_onnx(pair(Branch(), POINT))
    result = fold(graph)
    assert [node.op for node in graph.nodes] == ["Conv", "Conv", "Add"]
    assert [node.op for node in result.model.nodes] == ["Conv"]
    exported = gs.export_onnx(result.model)
    feeds = {"x": random(1, C, 5, 5)}
    assert relative_error(run(pair(Branch(), POINT), feeds), run(exported, feeds)) < F32_BOUND
