"""Activations written out in simple operators stay what onnxruntime makes one kernel of."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from support.activations import bell, gelu, gelu_tanh, hard_swish, mish, quick_gelu, silu
from support.graphs import Writer, model, random, relative_error, run
from support.kernels import executed_by_onnxruntime as kernels

from convbn.fuse.fold import fold
from convbn.fuse.refusal import Reason


def gelu_half_first(w: Writer, x: str) -> str:
    return w("Mul", w("Mul", x, 0.5), bell(w, x))


def gelu_half_on_the_bell(w: Writer, x: str) -> str:
    return w("Mul", x, w("Mul", bell(w, x), 0.5))


def gelu_halved(w: Writer, x: str) -> str:
    return w("Div", w("Mul", x, bell(w, x)), 2.0)


ACTIVATIONS = [
    *(gelu, gelu_half_first, gelu_half_on_the_bell, gelu_halved, gelu_tanh),
    *(quick_gelu, silu, mish, hard_swish),
]


def network(activation: Callable[[Writer, str], str], *, dense: bool, where: str) -> onnx.ModelProto:
    """Three layers with the activation between them and a BatchNorm in front of it or behind it."""
    w, y = Writer(), "x"
    for i in range(3):
        if dense:
            y = w("Add", w("MatMul", y, random(8, 8, seed=i)), random(8, seed=9 + i))
        else:
            y = w("Conv", y, random(8, 8, 1, 1, seed=i), random(8, seed=9 + i))
        if where == "in front":
            y = w.batchnorm(y, 8)
        if i < 2:
            y = activation(w, y)
        if where == "behind" and i < 2:
            y = w.batchnorm(y, 8)
    shape = [5, 8] if dense else [1, 8, 5, 5]
    return model(w.nodes, {"x": shape}, [y], w.constants)


@pytest.mark.parametrize("where", ["nowhere", "in front", "behind"])
@pytest.mark.parametrize("dense", [False, True], ids=["conv", "dense"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_as_many_fused_kernels_as_before(
    activation: Callable[[Writer, str], str], dense: bool, where: str
) -> None:
    built = network(activation, dense=dense, where=where)
    result = fold(built)
    before, after = kernels(built), kernels(result.model)
    for kind in ("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "HardSwish"):
        assert after[kind] >= before[kind], (kind, before, after)
    assert sum(after.values()) <= sum(before.values())
    assert result.report.batchnorm.after == 0
    feeds = {"x": random(*([5, 8] if dense else [1, 8, 5, 5]), seed=77)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_a_factor_of_every_channel_is_no_part_of_the_formula() -> None:
    """No runtime looks for it, so it goes into the layer behind."""
    w = Writer()
    y = gelu(w, w("Conv", "x", random(8, 8, 1, 1)))
    y = w.batchnorm(w("Conv", w("Mul", y, random(1, 8, 1, 1, seed=3)), random(8, 8, 1, 1, seed=4)), 8)
    built = model(w.nodes, {"x": [1, 8, 5, 5]}, [y], w.constants)
    folded = fold(built).model
    assert [node.op_type for node in folded.graph.node].count("Mul") == 2
    assert kernels(folded)["Gelu"] == 1


def test_a_gate_from_elsewhere_lets_a_scale_through() -> None:
    """Squeeze and excitation multiplies by a sigmoid too, of pooled values: nothing to keep whole."""
    w = Writer()
    x = w("Conv", "x", random(8, 8, 1, 1))
    gate = w("Sigmoid", w("Conv", w("GlobalAveragePool", x), random(8, 8, 1, 1, seed=5)))
    y = w.batchnorm(w("Conv", w("Mul", x, gate), random(8, 8, 1, 1, seed=6)), 8)
    assert fold(model(w.nodes, {"x": [1, 8, 5, 5]}, [y], w.constants)).report.batchnorm.after == 0


def test_a_batchnorm_whose_map_meets_the_formula_says_so() -> None:
    w = Writer()
    y = w.batchnorm(gelu(w, "x"), 8)
    w.constants |= {name: 0 * c for name, c in w.constants.items() if name.endswith((".beta", ".mean"))}
    built = model(w.nodes, {"x": [1, 8, 5, 5]}, [y], w.constants)
    report = fold(built).report
    assert [kept.reason for kept in report.kept] == [Reason.KERNEL_PATTERN]
