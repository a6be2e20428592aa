"""docs/architecture.md, "I want to add an operator" or "a rule": in one file, and both frontends know it from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from support.graphs import batchnorm, batchnorm_parameters, operators, random, relative_error

from convbn.errors import UsageError
from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_vector
from convbn.fuse.fold import fold
from convbn.fuse.operators import registry
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, parameters, wrong_axis
from convbn.fuse.options import FuseOptions
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import BIAS, DATA, WEIGHT, Op


# The operator's file: its class, its rule, its readers. Caffe calls it Scale.
# [kind]
@dataclass(frozen=True, slots=True)
class ScaleShift(Op):
    """``y[n, c] = g[c]·x[n, c] + b[c]``. Slots: data, g ``[C]``, b ``[C]``."""

    def output_axis_of(self, rank: int | None) -> int | None:
        """Channels are the second axis."""
        return 1


# [/kind]
# [rule]
def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``g' = s·g``, ``b' = s·b + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    constants = parameters(moves, node)
    if isinstance(constants, Refusal):
        return constants
    gain, bias = constants
    shift = affine.shift if bias is None else affine.scale * bias.exact() + affine.shift
    refusal = moves.set(node, WEIGHT, round_vector(affine.scale * gain.exact(), gain.dtype))
    return refusal if refusal is not None else moves.set(node, BIAS, round_vector(shift, gain.dtype))


# [/rule]
def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``g·(s·x + t) + b = (s·g)·x + (g·t + b)``."""
    constants = parameters(moves, node)
    if isinstance(constants, Refusal):
        return constants
    gain, bias = constants
    if slot != DATA or axis != 1 or bias is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} does not read the map along its channels")
    shift = gain.exact() * affine.shift + bias.exact()
    refusal = moves.set(node, WEIGHT, round_vector(affine.scale * gain.exact(), gain.dtype))
    return refusal if refusal is not None else moves.set(node, BIAS, round_vector(shift, gain.dtype))


# [readers]
def from_onnx(call: OnnxCall) -> Op | None:
    return ScaleShift() if len(call.inputs) == 3 else None


def from_aten(call: AtenCall) -> Mapped:
    return call.reads(ScaleShift(), "x", "gain", "bias")


RULE = Rule("scale-shift", ScaleShift, backward, forward)
READERS = Operator(
    ScaleShift,
    onnx={"com.example::ScaleShift": from_onnx},
    aten=(Aten(("example::scale_shift",), from_aten),),
)
OPERATOR = Operator(ScaleShift, RULE, onnx=READERS.onnx, aten=READERS.aten)
# [/readers]
# End of the operator's file.


@pytest.fixture
def registered() -> Iterator[None]:
    registry.register(OPERATOR)
    yield
    registry.unregister(OPERATOR)


class Reference(OpRun):  # type: ignore[misc]  # onnx ships no annotations for it
    """What a runtime computes for it."""

    op_domain = "com.example"

    def _run(self, x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray]:
        return (x * gain.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1),)


Reference.__name__ = "ScaleShift"


def graph(*names: str) -> onnx.ModelProto:
    """The operators ``names`` in a row between ReLUs."""
    arrays = {"g": random(4), "d": random(4, seed=2), **batchnorm_parameters(4)}
    made, source = [helper.make_node("Relu", ["x"], ["r"])], "r"
    for name in names:
        if name == "bn":
            made.append(batchnorm(source, name))
        else:
            made.append(
                helper.make_node("ScaleShift", [source, "g", "d"], [name], name, domain="com.example")
            )
        source = name
    made.append(helper.make_node("Relu", [source], ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4, 3, 3]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    built = helper.make_graph(made, "test", values[:1], values[1:], stored)
    return helper.make_model(built, opset_imports=versions, ir_version=10)


def computed(model: onnx.ModelProto) -> np.ndarray:
    session = ReferenceEvaluator(model, new_ops=[Reference])
    (result,) = session.run(None, {"x": random(2, 4, 3, 3, seed=3)})
    return np.asarray(result)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("names", [("scale", "bn"), ("bn", "scale")])
def test_the_operator_in_an_onnx_model(names: tuple[str, ...]) -> None:
    built = graph(*names)
    result = fold(built)
    assert operators(result.model) == ["Relu", "ScaleShift", "Relu"]
    (folded,) = result.report.folded
    assert folded.into == ("scale",)
    assert folded.rule == ("batchnorm-into-scale-shift" if names[0] == "scale" else "batchnorm-forward")
    assert relative_error(computed(built), computed(result.model)) < 1e-6


@pytest.fixture(scope="module")
def program() -> tuple[Any, Any]:
    """A torch program with the operator, and its input."""
    torch = pytest.importorskip("torch")
    from torch import nn

    @torch.library.custom_op(
        "example::scale_shift", mutates_args=(), schema="(Tensor x, Tensor gain, Tensor bias) -> Tensor"
    )
    def scale_shift(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return x * gain[:, None, None] + bias[:, None, None]

    scale_shift.register_fake(lambda x, gain, bias: torch.empty_like(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
            self.bn = nn.BatchNorm2d(4)
            nn.init.normal_(self.bn.weight)
            nn.init.normal_(self.bn.running_mean)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(torch.ops.example.scale_shift(x.relu(), self.gain, self.bias)).relu()

    torch.manual_seed(0)
    data = torch.randn(2, 4, 3, 3)
    return torch.export.export(Model().eval(), (data,)), data


@pytest.mark.usefixtures("registered")
def test_the_operator_in_a_torch_program(program: tuple[Any, Any]) -> None:
    given, data = program
    result = fold(given)
    assert (result.report.batchnorm.before, result.report.batchnorm.after) == (1, 0)
    assert [folded.rule for folded in result.report.folded] == ["batchnorm-into-scale-shift"]
    before, after = (program.module()(data).detach().numpy() for program in (given, result.model))
    assert relative_error(before, after) < 1e-6


def test_without_it_both_keep_the_batchnorm(program: tuple[Any, Any]) -> None:
    for model in (graph("scale", "bn"), program[0]):
        report = fold(model).report
        assert report.batchnorm.after == 1
        assert "ScaleShift" in report.kept[0].detail or "scale_shift" in report.kept[0].detail


def test_a_rule_for_an_operator_that_has_none(program: tuple[Any, Any]) -> None:
    """A rule is registered like an operator; here the readers stand in one file and the rule in another."""
    rule = Operator(ScaleShift, RULE)
    registry.register(READERS)
    try:
        models = (graph("scale", "bn"), program[0])
        assert [fold(model).report.batchnorm.after for model in models] == [1, 1]
        registry.register(rule)
        try:
            assert [fold(model).report.batchnorm.after for model in models] == [0, 0]
        finally:
            registry.unregister(rule)
    finally:
        registry.unregister(READERS)


@pytest.mark.usefixtures("registered")
def test_the_rule_is_known_by_its_name() -> None:
    built = graph("scale", "bn")
    name = RULE.full_name
    assert name in registry.known_names()
    assert fold(built, options=FuseOptions(only=(name,))).report.batchnorm.after == 0
    (kept,) = fold(built, options=FuseOptions(skip=(name,))).report.kept
    assert kept.reason is Reason.SKIPPED
    with pytest.raises(UsageError, match="has a rule already"):
        registry.register(OPERATOR)

    class Another(Op):
        pass

    with pytest.raises(UsageError, match="batchnorm-into-scale-shift"):
        registry.register(Operator(Another, Rule("scale-shift", Another)))
    assert registry.rule_for(Another()) is None


def test_a_name_is_unknown_again_when_it_was_taken_out() -> None:
    with pytest.raises(UsageError, match="there is no rule"):
        fold(graph("scale", "bn"), options=FuseOptions(only=(RULE.full_name,)))
