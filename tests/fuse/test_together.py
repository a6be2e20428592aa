"""Several calls of one layer and its BatchNorm: one constant for each parameter, or none of them goes.

Views are built by hand; modules are in ``tests/fuse/torch/test_torch_calls_of_one.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.views import Graph, node_of, numbers

from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.negation import Negation
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.plan import Plan
from convbn.fuse.plan.planner import make_plan
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.edits import Bypass, SetConstant
from convbn.fuse.view.op import Other
from convbn.fuse.view.view import View

AGAIN = Refusal(Reason.CALLED_SEVERAL_TIMES, "used several times in one run")


def parameter(name: str, constant: Constant) -> Value:
    return Value(name, constant.shape, constant=constant)


class Calls(Graph):
    """One convolution and one BatchNorm, called as often as a test likes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = parameter("conv.weight", numbers(4, 4, 1, 1))
        self.bias = parameter("conv.bias", numbers(4))
        self.statistics = [parameter(f"bn.{i}", numbers(4, fill=i + 2)) for i in range(4)]
        self.count = 0

    def layer(self, source: Value, bias: bool = True) -> Value:
        self.count += 1
        own = [self.weight, self.bias] if bias else [self.weight]
        output = self.add(f"conv{self.count}", Conv(1), source, *own)
        node_of(output).locks |= {1: AGAIN, 2: AGAIN}
        return output

    def normalised(self, source: Value) -> Value:
        self.count += 1
        output = self.add(f"bn{self.count}", BatchNorm(0.0), source, *self.statistics)
        return self.add(f"end{self.count}", Other("Tanh"), output)

    def plan(self) -> Plan:
        return make_plan(View(self.nodes, pure=True, replaceable=False), FuseOptions())


@pytest.mark.parametrize("bias", [True, False])
def test_every_parameter_takes_the_map_once(bias: bool) -> None:
    calls = Calls()
    for _ in range(3):
        calls.normalised(calls.layer(calls.add("data", Other("Sin"), calls.x), bias))
    plan = calls.plan()
    assert not plan.kept
    assert {one.into for one in plan.folded} == {("conv1",)}
    assert sorted(one.name for one in plan.folded) == ["bn2", "bn4", "bn6"]
    assert sum(isinstance(edit, Bypass) for edit in plan.edits) == 3
    for slot, fill in ((1, 2 / np.sqrt(5)), (2, 2 / np.sqrt(5) * (bias - 4) + 3)):
        constants = [
            edit.constant for edit in plan.edits if isinstance(edit, SetConstant) and edit.slot == slot
        ]
        assert len(constants) == 3
        assert len({id(constant) for constant in constants}) == 1
        np.testing.assert_allclose(constants[0].exact(), np.full(constants[0].shape, fill), rtol=1e-12)


def test_a_call_that_wants_other_numbers_keeps_all() -> None:
    """``s·(−y) + t = −(s·y − t)``: the same scale and the opposite shift."""
    calls = Calls()
    calls.normalised(calls.layer(calls.x))
    calls.normalised(calls.add("minus", Negation(), calls.layer(calls.x)))
    stays(calls)


def test_a_call_without_the_batchnorm_keeps_all() -> None:
    calls = Calls()
    calls.normalised(calls.layer(calls.x))
    calls.normalised(calls.layer(calls.x))
    calls.layer(calls.x).observed = "an output"
    stays(calls)


def stays(calls: Calls) -> None:
    plan = calls.plan()
    assert not plan.edits
    assert [one.reason for one in plan.kept] == [Reason.CALLED_SEVERAL_TIMES] * 2
