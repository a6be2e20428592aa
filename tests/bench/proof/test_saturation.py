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
