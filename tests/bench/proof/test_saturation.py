"""Outputs that saturate are judged at what the saturating function reads; fp16's noise is that of its weights too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.graphs import model, random

import convbn
from convbn.bench.equivalence.difference import judge
from convbn.bench.equivalence.noise import weights_moved
from convbn.bench.equivalence.saturation import saturated_outputs
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.export.precision.convert import convert

UNIT = 2.0**-10


def mask(
    scale: float = 1.0, level: float = -17.0, last: str = "Sigmoid", **attributes: Any
) -> onnx.ModelProto:
    """A segmentation map on noise: about 1e-7 everywhere, which onnxruntime's sigmoid computes in steps of 6e-8."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node(last, ["c"], ["s"], name="last", **attributes),
        helper.make_node("Transpose", ["s"], ["y"], name="turn", perm=[0, 2, 3, 1]),
    ]
    weight = np.float32(0.05 * scale) * random(4, 3, 3, 3, seed=1)
    return model(nodes, {"x": [1, 3, 12, 12]}, ["y"], {"w": weight, "b": np.full(4, level, np.float32)})


def fp16(scale: float = 1.0) -> onnx.ModelProto:
    return convert(mask(scale), "fp16", calibration=None, options=None).model


def test_a_saturated_map_in_fp16_is_judged_before_the_sigmoid() -> None:
    answer = convbn.verify(mask(), fp16(), precision="fp16")
    assert answer.equal, answer.reason
    assert "what the Sigmoid before output 'y' reads" in answer.reason


@pytest.mark.parametrize("scale", [0.7, 1.5, -1.0])
def test_and_a_wrong_one_is_seen_there(scale: float) -> None:
    assert not convbn.verify(mask(), fp16(scale), precision="fp16").equal


def test_rounding_of_the_sigmoid_itself_refuses_nothing() -> None:
    other = mask()
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == "w")
    moved = numpy_helper.to_array(weight) * np.float32(1 + 1e-6)
    weight.CopyFrom(numpy_helper.from_array(moved, "w"))
    assert convbn.verify(mask(), other).equal
    assert not convbn.verify(mask(), mask(1.01)).equal


def test_both_have_to_do_the_same_behind_it() -> None:
    found = saturated_outputs(Dataflow(mask()), Dataflow(fp16()))
    assert [(s.output, s.op, s.reference) for s in found] == [("y", "Sigmoid", "c")]
    assert not saturated_outputs(Dataflow(mask()), Dataflow(mask(last="HardSigmoid")))
    assert not saturated_outputs(
        Dataflow(mask(last="Softmax", axis=1)), Dataflow(mask(last="Softmax", axis=2))
    )
    assert not saturated_outputs(Dataflow(mask(last="Relu")), Dataflow(mask(last="Relu")))


def larger(level: float = 0.0, factor: float = 1.0, *, node: bool = False) -> onnx.ModelProto:
    """Whether a convolution gives more than another one, plus a stored level."""
    stored = numpy_helper.from_array(np.float32([level]), "k")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Conv", ["x", "v"], ["d"], name="other"),
        *([helper.make_node("Constant", [], ["k"], value=stored)] if node else []),
        helper.make_node("Sub", ["c", "d"], ["s"]),
        helper.make_node("Greater", ["s", "k"], ["m"]),
        helper.make_node("Less", ["c", "d"], ["y"]),
    ]
    held = {"w": random(4, 3, 1, 1), "v": np.float32(factor) * random(4, 3, 1, 1, seed=1)}
    built = model(
        nodes, {"x": [1, 3, 8, 8]}, ["m", "y"], held if node else {**held, "k": np.float32([level])}
    )
    for output in built.graph.output:
        output.type.tensor_type.elem_type = onnx.TensorProto.BOOL
    return built


@pytest.mark.parametrize("node", [False, True])
def test_a_choice_is_judged_at_all_that_it_reads(node: bool) -> None:
    """The level is stored under the same name; ``d`` is what the second input of Less is called in both."""
    assert convbn.verify(larger(node=node), larger(node=node)).equal
    assert convbn.verify(larger(node=node), larger(0.5, node=node)).status == "different"
    assert convbn.verify(larger(node=node), larger(factor=1.5, node=node)).status == "different"
    found = saturated_outputs(Dataflow(larger()), Dataflow(larger(node=True)))
    assert [(s.output, s.op, s.reference) for s in found] == [
        ("m", "Greater", "s"),
        ("y", "Less", "c"),
        ("y", "Less", "d"),
    ]


def test_what_only_rounds_hides_nothing_where_no_fold_is_shown_by_itself() -> None:
    def whole(scale: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("Add", ["c", "k"], ["s"], name="add"),
            helper.make_node("Cast", ["s"], ["i"], name="cast", to=onnx.TensorProto.INT64),
            helper.make_node("Flatten", ["i"], ["y"], name="flat"),
        ]
        held = {"w": np.float32(scale) * random(4, 3, 1, 1), "k": np.full(1, 1e6, np.float32)}
        built = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], held)
        built.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
        return built

    assert convbn.verify(whole(1.0), whole(2.0)).status == "different"
    one, other = Dataflow(whole(1.0)), Dataflow(whole(2.0))
    assert saturated_outputs(one, other) == []
    found = saturated_outputs(one, other, rounding=True)
    assert [(s.output, s.op, s.reference) for s in found] == [("y", "Cast", "s")]


def test_the_noise_of_fp16_is_that_of_its_weights_too() -> None:
    given = mask()
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in given.graph.initializer}
    moved = weights_moved(given, UNIT, seed=0)
    assert isinstance(moved, onnx.ModelProto)
    off = {tensor.name: numpy_helper.to_array(tensor) for tensor in moved.graph.initializer}
    assert np.allclose(np.abs(off["w"] / held["w"] - 1), UNIT, rtol=1e-3)
    assert {-1, 1} == set(np.sign(off["w"] / held["w"] - 1).flatten())
    # What has one dimension may be a shape or a factor of a size.
    assert np.array_equal(off["b"], held["b"])
    assert held["w"].tobytes() == numpy_helper.to_array(given.graph.initializer[0]).tobytes()


def test_of_a_module_too() -> None:
    module = torch.nn.Conv2d(3, 4, 3)
    before = module.weight.detach().clone()
    moved = weights_moved(module, UNIT, seed=0)
    assert isinstance(moved, torch.nn.Module)
    off = dict(moved.named_parameters())["weight"].detach() / before - 1
    assert torch.allclose(off.abs(), torch.full_like(off, UNIT), rtol=1e-2)
    assert torch.equal(module.weight, before)


def test_noise_belongs_to_the_sample_that_was_moved() -> None:
    first, second = np.full((1, 2), 1.0, np.float32), np.full((1, 2), 100.0, np.float32)
    off = second + np.float32(3)

    def status(moved: list[tuple[int, list[Any]]]) -> str:
        return judge(["y"], [[first], [second]], [[first], [off]], inputs_differ=True, moved=moved).status

    assert status([(0, [first + np.float32(0.05)])]) == "different"
    assert status([(1, [second + np.float32(0.5)])]) == "equal"
