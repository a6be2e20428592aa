"""``softmax(·)·V`` passes maps of V's channels, and no others."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random, relative_error, run

from convbn.fuse.fold import Folding, fold


def node(operator: str, sources: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, sources.split(), [target], name=target, **attributes)


def check(
    nodes: list[onnx.NodeProto], x: tuple[int, ...], left: int, *, channels: int = 6, opset: int = 20
) -> Folding:
    width = x[-1]
    numbers = {"wq": random(width, 4), "wk": random(width, 4, seed=1), "wv": random(width, 6, seed=2)}
    numbers |= batchnorm_parameters(channels)
    built = model(nodes, {"x": x}, ["y"], numbers, opset=opset)
    result = fold(built)
    assert result.report.batchnorm.after == left, result.report.kept
    feeds = {"x": random(*x, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    return result


def attention(axis: int = -1) -> list[onnx.NodeProto]:
    """Over ``x [N, L, I]``: weights ``p [N, L, L]``, values ``v [N, L, 6]``."""
    return [
        node("MatMul", "x wq", "q"),
        node("MatMul", "x wk", "k"),
        node("MatMul", "x wv", "v"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "scores"),
        node("Softmax", "scores", "p", axis=axis),
    ]


TRANSPOSED = [node("Transpose", "o", "ot", perm=[0, 2, 1]), batchnorm("ot", "y")]


@pytest.mark.parametrize("axis", [-1, 2])
def test_a_batchnorm_behind_attention_goes_into_the_values(axis: int) -> None:
    result = check([*attention(axis), node("MatMul", "p v", "o"), *TRANSPOSED], (2, 5, 8), 0)
    # V's projection has no bias to take the shift.
    assert result.report.folded[0].rule == "batchnorm-to-add"
    biased = [*attention(axis), node("Add", "v bn.beta", "vb"), node("MatMul", "p vb", "o"), *TRANSPOSED]
    assert check(biased, (2, 5, 8), 0).report.folded


def test_weights_that_sum_to_1_along_another_axis_stop_it() -> None:
    nodes = [*attention(1), node("Add", "v bn.beta", "vb"), node("MatMul", "p vb", "o"), *TRANSPOSED]
    check(nodes, (2, 5, 8), 1)


def test_weights_that_are_changed_behind_the_softmax_stop_it() -> None:
    nodes = [
        *attention(),
        node("Relu", "p", "pr"),
        node("Add", "v bn.beta", "vb"),
        node("MatMul", "pr vb", "o"),
        *TRANSPOSED,
    ]
    check(nodes, (2, 5, 8), 1)


def test_the_axis_of_the_sequence_is_mixed() -> None:
    nodes = [*attention(), node("MatMul", "p v", "o"), batchnorm("o", "y")]
    check(nodes, (2, 6, 8), 1)


def test_values_on_the_left() -> None:
    """``v [N, 6, L] · p [N, L, L]``, each column of p summing to 1."""
    nodes = [
        *attention(1),
        node("Add", "v bn.beta", "vb"),
        node("Transpose", "vb", "vt", perm=[0, 2, 1]),
        node("MatMul", "vt p", "o"),
        batchnorm("o", "y"),
    ]
    check(nodes, (2, 5, 8), 0)
    nodes[5] = node("Softmax", "scores", "p", axis=-1)
    check(nodes, (2, 5, 8), 1)


def test_an_old_softmax_over_two_axes_does_not_sum_to_1_along_one() -> None:
    nodes = [
        *attention(1),
        node("Add", "v bn.beta", "vb"),
        node("Transpose", "vb", "vt", perm=[0, 2, 1]),
        node("MatMul", "vt p", "o"),
        batchnorm("o", "y"),
    ]
    check(nodes, (2, 5, 8), 1, opset=12)


def test_a_shift_does_not_change_what_the_weights_come_from() -> None:
    """V also feeds the scores: moving the map into it would change them."""
    nodes = [
        node("MatMul", "x wv", "v0"),
        node("Add", "v0 bn.beta", "v"),
        node("Transpose", "v", "vt", perm=[0, 2, 1]),
        node("MatMul", "v vt", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p v", "o"),
        *TRANSPOSED,
    ]
    check(nodes, (2, 5, 8), 1)
