"""``softmax(·)·V`` passes maps of V's channels, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

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
    # V's projection has no bias to take the shift, and gains one.
    assert result.report.folded[0].into == ("v",)
    assert operators(result.model).count("Add") == 1
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


# --- heads ------------------------------------------------------------------------------------------


def heads(batch: int | str, *, swapped: bool = False, both: bool = False) -> onnx.ModelProto:
    """Attention over the pixels of an image with two heads of three channels, and a BatchNorm behind it."""
    split = [node("Split", "qkv", "q", axis=1, num_outputs=3)]
    split[0].output[:] = ["q", "k", "v"]
    to_heads = [
        node("Reshape", f"{name} {name}.shape", f"{name}.h") for name in ("q", "k", "v")
    ]  # [N·2, 3, 16]
    nodes = [
        node("Conv", "x w b", "qkv"),
        *split,
        *to_heads,
        node("Transpose", "q.h", "q.t", perm=[0, 2, 1]),
        node("MatMul", "q.t k.h", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("Transpose", "v.h", "v.t", perm=[0, 2, 1]),
        node("MatMul", "p v.t", "o"),
        node("Transpose", "o", "o.t", perm=[0, 2, 1]),
        node("Reshape", "o.t back", "image"),
        batchnorm("image", "n"),
        node("Relu", "n", "y"),
    ]
    if both:
        nodes.append(node("Add", "v.t b1", "z"))
    groups = batch if isinstance(batch, int) else 1
    shape = np.array([3 if swapped else 2 * groups, 2 if swapped else 3, 16])
    numbers = {
        "w": random(18, 5, 1, 1),
        "b": random(18, seed=1),
        "b1": random(1, seed=2),
        **{f"{name}.shape": shape for name in ("q", "k", "v")},
        "back": np.array([groups, 6, 4, 4]),
        **batchnorm_parameters(6),
    }
    return model(nodes, {"x": [batch, 5, 4, 4]}, ["y", "z"] if both else ["y"], numbers)


def folded(built: onnx.ModelProto, left: int, batch: int = 1) -> None:
    result = fold(built)
    assert result.report.batchnorm.after == left, result.report.kept
    feeds = {"x": random(batch, 5, 4, 4, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_a_map_passes_heads_along_two_axes_at_once() -> None:
    folded(heads(1), 0)


def test_it_is_the_heads_that_count_and_not_their_number() -> None:
    folded(heads(1, swapped=True), 0)


def test_with_a_batch_among_the_heads_it_stays() -> None:
    folded(heads(2), 1, 2)


def test_other_readers_of_a_map_along_two_axes_stop_it() -> None:
    built = heads(1, both=True)
    for tensor in built.graph.initializer:
        if tensor.name in ("bn.beta", "bn.mean"):  # a scale alone could be compensated along one axis
            tensor.raw_data = bytes(len(tensor.raw_data))
    folded(built, 1)
