"""ONNX's DeformConv: what its offsets pick from the data is a weighted sum all the same."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import fold
from convbn.proof import verify

INPUTS = {"x": [1, 4, 6, 6], "offset": [1, 18, 6, 6], "mask": [1, 9, 6, 6]}


def built(reads: str, *, group: int = 1, front: bool = False) -> onnx.ModelProto:
    """A DeformConv of 3 by 3 that reads these, and a BatchNorm behind it, or in front."""
    names = [name if name != "-" else "" for name in reads.split()]
    source, target = ("n", "y") if front else ("x", "c")
    names[0] = source
    conv = helper.make_node("DeformConv", names, [target], name="deform", pads=[1] * 4, group=group)
    norm = batchnorm("x", "n") if front else batchnorm("c", "y")
    stored = {"w": random(4, 4 // group, 3, 3), "b": random(4), **batchnorm_parameters(4)}
    read = {*names, *norm.input}
    return model(
        [norm, conv] if front else [conv, norm],
        {name: shape for name, shape in INPUTS.items() if name in read},
        ["y"],
        {name: array for name, array in stored.items() if name in read},
        opset=19,
    )


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("reads", ["x w offset", "x w offset b", "x w offset b mask", "x w offset - mask"])
def test_it_takes_the_batchnorm_behind_it(reads: str, group: int) -> None:
    original = built(reads, group=group)
    result = fold(original)
    assert operators(result.model) == ["DeformConv"]
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {v.name: random(*INPUTS[v.name], seed=i) for i, v in enumerate(original.graph.input)}
    assert relative_error(run(original, feeds), run(result.model, feeds)) < 1e-5
    assert [name != "" for name in result.model.graph.node[0].input[:4]] == [True] * 4
    assert verify(original, result.model).status == "equal"


def test_offsets_leave_no_place_for_a_map_in_front() -> None:
    result = fold(built("x w offset", front=True))
    assert [kept.reason for kept in result.report.kept] == ["reads-the-input"]


def test_a_weight_that_is_fed_stays() -> None:
    original = built("x w offset")
    weight = original.graph.initializer[0]
    original.graph.input.append(helper.make_tensor_value_info("w", weight.data_type, weight.dims))
    del original.graph.initializer[0]
    assert [kept.reason for kept in fold(original).report.kept] == ["weight-not-constant"]
