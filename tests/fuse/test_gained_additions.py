"""Products without a place for a bias, which gain an addition for a BatchNorm that goes: MatMul, ``W @ x``, Einsum."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold

X = (2, 6, 5, 4)


def node(operator: str, sources: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, sources.split(), [target], name=f"{operator} {target}", **attributes)


def check(
    nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray], x: tuple[int, ...] = X, *, opset: int = 17
) -> Folding:
    made = {name for n in nodes for name in n.output}
    read = {name for n in nodes for name in n.input}
    numbers = {k: v for k, v in {**batchnorm_parameters(6), **stored}.items() if k in read - made}
    built = model(nodes, {"x": x}, ["y"], numbers, opset=opset)
    result = fold(built)
    feeds = {"x": random(*x, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 5e-6
    return result


BEHIND = {
    "oc,nchw->nohw": ((6, 6), 1),
    "nchw,oc->nohw": ((6, 6), 1),
    "co,nchw->nhwo": ((6, 6), 3),
    "wv,nchw->ncvh": ((4, 3), 1),
    "co,nchw->no": ((6, 6), 1),
}


@pytest.mark.parametrize("equation", BEHIND)
def test_behind_an_einsum_with_one_constant(equation: str) -> None:
    shape, axis = BEHIND[equation]
    operands = "w x" if len(equation.split(",")[0]) == 2 else "x w"
    nodes = [node("Sigmoid", "x", "a"), node("Einsum", operands.replace("x", "a"), "e", equation=equation)]
    if axis == 3:
        nodes += [node("Transpose", "e", "t", perm=[0, 3, 1, 2]), batchnorm("t", "y")]
    else:
        nodes.append(batchnorm("e", "y"))
    stays = equation == "wv,nchw->ncvh"  # the channels are those of the data, behind a sigmoid
    result = check(nodes, {"w": random(*shape)})
    assert result.report.batchnorm.after == stays
    if not stays:
        assert operators(result.model).count("Add") == 1


@pytest.mark.parametrize("equation", ["oc,nchw->nohw", "nchw,oc->nohw", "co,nchw->no", "wv,nchw->ncvh"])
@pytest.mark.parametrize("shift", [True, False])
def test_in_front_of_an_einsum_with_one_constant(equation: str, shift: bool) -> None:
    operands = "w n" if len(equation.split(",")[0]) == 2 else "n w"
    nodes = [
        node("Sigmoid", "x", "a"),
        batchnorm("a", "n"),
        node("Einsum", operands, "y", equation=equation),
    ]
    plain = {} if shift else {"bn.beta": np.zeros(6, "f4"), "bn.mean": np.zeros(6, "f4")}
    shape = (4, 3) if "wv" in equation else (3, 6) if "oc" in equation else (6, 3)
    # Summed over h and w, a shift counts as often as there are places; past another axis it has no numbers to go into.
    goes = equation.endswith("nohw") or (not shift and "wv" not in equation)
    assert check(nodes, {"w": random(*shape), **plain}).report.batchnorm.after == (not goes)


@pytest.mark.parametrize("equation", ["cc,nchw->nchw", "oc,nchw", "oc,n...->no...", "kc,nchw->nchw"])
def test_an_einsum_that_is_no_product_of_axes_stays(equation: str) -> None:
    shape = {"cc,nchw->nchw": (6, 6), "kc,nchw->nchw": (1, 6)}.get(equation, (6, 6))
    nodes = [node("Einsum", "w x", "e", equation=equation)]
    if equation == "oc,nchw":  # the letters of the output in the order of the alphabet: h, n, o, w
        nodes += [node("Transpose", "e", "t", perm=[1, 2, 0, 3]), batchnorm("t", "y")]
    elif equation == "oc,n...->no...":
        nodes = [node("Einsum", "w x", "e", equation="oc,nc...->no..."), batchnorm("e", "y")]
    else:
        nodes.append(batchnorm("e", "y"))
    after = check(nodes, {"w": random(*shape)}).report.batchnorm.after
    assert after == (equation != "kc,nchw->nchw")


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("in_front", [False, True])
def test_a_matrix_on_the_left(rank: int, in_front: bool) -> None:
    x = {2: (6, 6), 3: (2, 6, 5), 4: (2, 6, 5, 4)}[rank]
    turn = [1, 0] if rank == 2 else [0, 2, 1] if rank == 3 else [0, 2, 1, 3]
    back = turn
    if in_front:
        nodes = [
            node("Sigmoid", "x", "a"),
            batchnorm("a", "n"),
            node("Transpose", "n", "t", perm=turn),
            node("MatMul", "w t", "y"),
        ]
    else:
        nodes = [
            node("Transpose", "x", "t", perm=turn),
            node("Sigmoid", "t", "a"),
            node("MatMul", "w a", "m"),
            node("Transpose", "m", "b", perm=back),
            batchnorm("b", "n"),
            node("Tanh", "n", "y"),
        ]
    # From the left a matrix works on the last axis but one.
    rows = x[turn[-2]]
    channels_are_rows = turn[-2] == 1
    result = check(nodes, {"w": random(rows, rows)}, x)
    if channels_are_rows:
        assert result.report.batchnorm.after == 0
        assert operators(result.model).count("Add") == 1


def test_a_bias_that_is_written_already_takes_the_shift() -> None:
    nodes = [node("MatMul", "w x", "m"), node("Add", "m column", "c"), batchnorm("c", "y")]
    result = check(nodes, {"w": random(6, 5), "column": random(6, 1)}, (2, 5, 3))
    assert operators(result.model) == ["MatMul", "Add"]


def test_two_batchnorms_behind_one_another_share_the_addition() -> None:
    nodes = [node("MatMul", "w x", "m"), batchnorm("m", "n"), batchnorm("n", "y", prefix="bn2")]
    result = check(nodes, {"w": random(6, 5), **batchnorm_parameters(6, prefix="bn2", seed=3)}, (2, 5, 3))
    assert operators(result.model) == ["MatMul", "Add"]


def test_no_more_additions_than_batchnorms_go() -> None:
    """Three products read it: three additions would take the place of one BatchNorm."""
    layers = [node("MatMul", f"t w{i}", f"m{i}") for i in range(3)]
    nodes = [
        node("Sigmoid", "x", "a"),
        batchnorm("a", "n"),
        node("Transpose", "n", "t", perm=[0, 2, 1]),
        *layers,
        *(node("Tanh", f"m{i}", f"h{i}") for i in range(3)),
        node("Sum", "h0 h1 h2", "y"),
    ]
    result = check(nodes, {f"w{i}": random(6, 4, seed=i) for i in range(3)}, (2, 6, 5))
    (kept,) = result.report.kept
    assert "an addition for it costs what the BatchNorm does" in kept.detail


def test_names_stay_and_new_ones_are_free() -> None:
    nodes = [
        node("MatMul", "x w", "m"),
        node("Identity", "m_product", "y2"),
        node("Transpose", "m", "t", perm=[0, 2, 1]),
        batchnorm("t", "y"),
    ]
    nodes.insert(0, node("Tanh", "x", "m_product"))
    built = model(nodes, {"x": (2, 5, 4)}, ["y", "y2"], {"w": random(4, 6), **batchnorm_parameters(6)})
    result = fold(built).model
    product, addition = (n for n in result.graph.node if n.op_type in ("MatMul", "Add"))
    assert (product.name, addition.name) == ("MatMul m", "MatMul m_bias")
    assert product.output[0] == "m_product_2"
    assert list(addition.output) == ["m"]
    assert [list(n.output) for n in result.graph.node][-1] == ["y"]
    feeds = {"x": random(2, 5, 4, seed=7)}
    assert relative_error(run(built, feeds), run(result, feeds)) < 5e-6


def test_in_a_branch_of_an_if() -> None:
    body = helper.make_graph(
        [
            node("MatMul", "x w", "m"),
            node("Transpose", "m", "t", perm=[0, 2, 1]),
            batchnorm("t", "n"),
            node("Tanh", "n", "out"),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("out", 1, (2, 6, 5))],
    )
    other = helper.make_graph(
        [node("MatMul", "x w", "q"), node("Transpose", "q", "other", perm=[0, 2, 1])],
        "else",
        [],
        [helper.make_tensor_value_info("other", 1, (2, 6, 5))],
    )
    nodes = [
        node("ReduceMax", "x", "top", keepdims=0),
        node("Greater", "top w0", "yes"),
        helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=other),
    ]
    stored = {"w": random(4, 6), "w0": np.float32(-9), **batchnorm_parameters(6)}
    built = model(nodes, {"x": (2, 5, 4)}, ["y"], stored)
    result = fold(built)
    assert result.report.batchnorm.after == 0
    feeds = {"x": random(2, 5, 4, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 5e-6


def test_before_additions_broadcast_there_is_no_place() -> None:
    nodes = [
        node("MatMul", "x w", "m"),
        node("Transpose", "m", "t", perm=[0, 2, 1]),
        batchnorm("t", "n", is_test=1),
        node("Tanh", "n", "y"),
    ]
    numbers = {"w": random(4, 6), **batchnorm_parameters(6)}
    result = fold(model(nodes, {"x": (2, 5, 4)}, ["y"], numbers, opset=6))
    assert operators(result.model) == ["MatMul", "Transpose", "BatchNormalization", "Tanh"]
    assert result.report.kept[0].reason == "no-place-for-a-bias"


def test_none_where_the_batchnorm_would_leave_an_identity() -> None:
    """Its output is seen by its name, and what it reads is read by the product too: no node would go."""
    numbers = {"w": random(6, 6, 1, 1), "p": random(6, 6), **batchnorm_parameters(6)}
    nodes = [
        node("Conv", "x w", "c"),
        batchnorm("c", "n"),
        node("Einsum", "p c", "y", equation="oc,nchw->nohw"),
    ]
    seen = model(nodes, {"x": X}, ["n", "y"], numbers)
    result = fold(seen)
    assert result.report.nodes.after <= result.report.nodes.before
    assert [kept.reason for kept in result.report.kept] == ["several-readers"]
    unseen = model([*nodes, node("Relu", "n", "r")], {"x": X}, ["r", "y"], numbers)
    assert operators(fold(unseen).model) == ["Conv", "Einsum", "Add", "Relu"]


def test_what_reads_the_product_takes_the_shift_first() -> None:
    """So that folding again changes nothing: an addition would go there as well."""
    layers = [node("Einsum", "w n", "e", equation="oc,nchw->nohw"), node("Conv", "e w2 b2", "y")]
    numbers = {"w": random(6, 6), "w2": random(3, 6, 1, 1), "b2": random(3)}
    result = check([batchnorm("x", "n"), *layers], numbers)
    assert operators(result.model) == ["Einsum", "Conv"]


@pytest.mark.parametrize(
    ("pads", "behind", "added"),
    [(0, "Conv", 0), (1, "Conv", 1), (0, "Sigmoid Conv", 1), (0, "Relu Conv", 1)],
    ids=["a layer that takes it", "padding", "no way onward", "an activation that lets no shift pass"],
)
def test_no_addition_is_gained_where_a_layer_behind_takes_the_batchnorm(
    pads: int, behind: str, added: int
) -> None:
    nodes = [node("Einsum", "w x", "e", equation="oc,nchw->nohw"), batchnorm("e", "v")]
    if behind != "Conv":
        nodes.append(node(behind.split()[0], "v", "u"))
    nodes.append(node("Conv", f"{'v' if behind == 'Conv' else 'u'} k", "y", pads=[pads] * 4))
    result = check(nodes, {"w": random(6, 6), "k": random(6, 6, 3, 3)})
    assert result.report.batchnorm.after == 0
    assert operators(result.model).count("Add") == added
    again = fold(result.model)
    assert again.model.SerializeToString() == result.model.SerializeToString()
