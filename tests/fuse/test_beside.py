"""A BatchNorm beside a convolution of the same data, in the view of a module: the numbers that the convolution takes.

Views are built by hand; modules are in ``tests/fuse/torch/test_torch_beside.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.views import SHAPE, Graph, node_of

from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.planner import make_plan
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.edits import Bypass, SetConstant
from convbn.fuse.view.op import Other, Window
from convbn.fuse.view.view import View

ADD, SUBTRACT = Elementwise(Arithmetic.ADD), Elementwise(Arithmetic.SUBTRACT)
C = SHAPE[1]
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(C, C, 3, 3)).astype("f4"), RNG.normal(size=C).astype("f4")
STATISTICS = [RNG.uniform(0.5, 2, C).astype("f4") for _ in range(4)]
SAME = Window((1, 1), (1, 1), (1, 1), (1, 1))


class Beside(Graph):
    """``code`` of a convolution and a BatchNorm over ``x``, behind something that no map passes."""

    def __init__(self, code: Callable[[Beside, Value, Value], Any], *bias: Constant, **changed: Any) -> None:
        super().__init__()
        data = self.add("silu", Other("SiLU"), self.x)
        window = changed.get("window", SAME)
        self.host = self.add("conv", Conv(1, 1, window), data, Constant.of(WEIGHT), *bias)
        statistics = [Constant.of(array) for array in changed.get("statistics", STATISTICS)]
        self.norm = self.add("bn", BatchNorm(0.0), data, *statistics)
        self.add("end", Other("Sigmoid"), code(self, self.host, self.norm)).observed = "an output"

    def planned(self, **options: Any) -> dict[int, Constant] | None:
        """What the convolution is given, by slot; None where the BatchNorm stays."""
        view = View(self.nodes, pure=True, replaceable=False)
        plan = make_plan(view, FuseOptions(**options))
        if plan.kept:
            assert not plan.edits
            return None
        assert [(one.name, one.into, one.rule) for one in plan.folded] == [
            ("bn", ("conv",), "batchnorm-beside")
        ]
        assert [edit.node for edit in plan.edits if isinstance(edit, Bypass)] == [node_of(self.norm)]
        settings = [edit for edit in plan.edits if isinstance(edit, SetConstant)]
        assert {edit.node.name for edit in settings} == {"conv"}
        return {edit.slot: edit.constant for edit in settings}


def joined(operation: Elementwise, *, turned: bool = False) -> Callable[[Beside, Value, Value], Value]:
    return lambda g, host, norm: g.add("sum", operation, *([norm, host] if turned else [host, norm]))


@pytest.mark.parametrize("bias", [[], [Constant.of(BIAS)]])
@pytest.mark.parametrize(
    ("code", "sign"),
    [
        (joined(ADD), 1),
        (joined(ADD, turned=True), 1),
        (joined(SUBTRACT), -1),
        (joined(SUBTRACT, turned=True), -1),
        (lambda g, host, norm: g.add("sum", ADD, g.add("less", SUBTRACT, host, g.x), norm), 1),
        (lambda g, host, norm: g.add("sum", SUBTRACT, g.add("less", SUBTRACT, g.x, norm), host), 1),
    ],
)
def test_the_middle_tap_takes_the_scale_less_1(code: Any, sign: float, bias: list[Constant]) -> None:
    """``±conv(x) ± (s·x + t) = ±conv'(x) ± x``: relative to the convolution's sign, that of the BatchNorm."""
    given = Beside(code, *bias).planned()
    gamma, beta, mean, variance = (array.astype("f8") for array in STATISTICS)
    scale = gamma / np.sqrt(variance)
    weight = WEIGHT.astype("f8")
    weight[range(C), range(C), 1, 1] += sign * (scale - 1)
    assert given is not None
    assert given.keys() == {1, 2}
    np.testing.assert_allclose(given[1].exact(), weight, rtol=1e-12)
    shift = sign * (beta - scale * mean) + (BIAS.astype("f8") if bias else 0)
    np.testing.assert_allclose(given[2].exact(), shift, rtol=1e-12)
    assert given[1].array().dtype == given[2].array().dtype == np.float32


@pytest.mark.parametrize(
    "window",
    [Window((1, 1), (1, 1), (0, 0), (0, 0)), Window((2, 2), (1, 1), (1, 1), (1, 1)), None],
)
def test_without_a_tap_over_its_own_place_it_stays(window: Window | None) -> None:
    assert Beside(joined(ADD), window=window).planned() is None


def test_what_is_no_sum_or_seen_by_others_stays() -> None:
    assert Beside(joined(Elementwise(Arithmetic.MULTIPLY))).planned() is None
    seen = Beside(joined(ADD))
    seen.norm.observed = "seen by a hook"
    assert seen.planned() is None
    assert Beside(joined(ADD)).planned(skip=("batchnorm-beside",)) is None


@pytest.mark.parametrize(("variance", "mean", "goes"), [(1e5, 0, True), (1e8, 0, False), (1, 1e6, False)])
def test_data_much_larger_than_the_result(variance: float, mean: float, goes: bool) -> None:
    """By the statistics: what x is against γ = 2 and β = 0."""
    gamma, beta = np.full(C, 2, "f4"), np.zeros(C, "f4")
    statistics = [gamma, beta, np.full(C, mean, "f4"), np.full(C, variance, "f4")]
    assert (Beside(joined(ADD), statistics=statistics).planned() is not None) is goes


def test_no_channels_are_none_of_the_convolution() -> None:
    graph = Beside(joined(ADD), statistics=[np.zeros(0, "f4")] * 4)
    node_of(graph.norm).locks["bypass"] = Refusal(Reason.HOOKED, "seen by a hook")
    assert graph.planned() is None
