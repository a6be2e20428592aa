"""Sums, maxima and minima over axes: a map along another axis passes, a shift times the number of terms."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import Writer, model, random, relative_error, run

from convbn.fuse.fold import fold

KINDS = ["ReduceSum", "ReduceMax", "ReduceMin"]


def built(
    kind: str,
    *,
    in_front: bool,
    positive: bool = True,
    axes: tuple[int, ...] = (2, 3),
    keep: int = 1,
    shape: tuple[int | str, ...] = (2, 4, 5, 3),
) -> onnx.ModelProto:
    """Conv → BatchNorm → reduction → Gemm, or the BatchNorm behind the reduction."""
    w = Writer()
    y = w("Conv", "x", random(4, 4, 1, 1), random(4, seed=1))
    if in_front:
        y = w.batchnorm(w("Sigmoid", y), 4)
    reduced = {"axes": list(axes)} if kind != "ReduceSum" else {}
    more = [list(axes)] if kind == "ReduceSum" else []
    y = w(kind, y, *more, keepdims=keep, **reduced)
    if in_front and not keep:
        y = w("Gemm", y, random(4, 6), random(6))
    elif in_front:
        y = w("Conv", y, random(4, 4, 1, 1, seed=3), random(4))
    else:
        y = w("Sigmoid", w.batchnorm(y, 4))
    if positive:
        w.constants |= {k: abs(v) for k, v in w.constants.items() if k.endswith(".gamma")}
    return model(w.nodes, {"x": list(shape)}, [y], w.constants, opset=17)


def left(made: onnx.ModelProto) -> int:
    result = fold(made)
    feeds = {"x": random(2, 4, 5, 3, seed=7)}
    assert relative_error(run(made, feeds), run(result.model, feeds)) < 1e-5
    return result.report.batchnorm.after


@pytest.mark.parametrize("in_front", [True, False])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_map_along_another_axis_passes(kind: str, keep: int, in_front: bool) -> None:
    assert left(built(kind, in_front=in_front, keep=keep)) == 0


@pytest.mark.parametrize("in_front", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_only_a_sum_lets_a_negative_scale_through(kind: str, in_front: bool) -> None:
    assert left(built(kind, in_front=in_front, positive=False)) == (kind != "ReduceSum")


@pytest.mark.parametrize("in_front", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_of_a_sum_needs_the_number_of_terms(kind: str, in_front: bool) -> None:
    assert left(built(kind, in_front=in_front, shape=(2, 4, "H", 3))) == (kind == "ReduceSum")


@pytest.mark.parametrize("kind", KINDS)
def test_over_the_channels_nothing_passes(kind: str) -> None:
    w = Writer()
    y = w.batchnorm(w("Sigmoid", w("Conv", "x", random(4, 4, 1, 1))), 4)
    reduced = {} if kind == "ReduceSum" else {"axes": [1]}
    y = w(kind, y, *([[1]] if kind == "ReduceSum" else []), keepdims=1, **reduced)
    assert left(model(w.nodes, {"x": [2, 4, 5, 3]}, [w("Sigmoid", y)], w.constants, opset=17)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_over_a_constant_it_is_none_of_these(kind: str) -> None:
    w = Writer()
    weight = w(
        kind,
        np.ones((2, 4, 4, 1, 1), np.float32),
        *([[0]] if kind == "ReduceSum" else []),
        keepdims=0,
        **({} if kind == "ReduceSum" else {"axes": [0]}),
    )
    y = w.batchnorm(w("Conv", "x", weight), 4)
    assert left(model(w.nodes, {"x": [2, 4, 5, 3]}, [y], w.constants, opset=17)) == (kind != "ReduceSum")
