"""The key map: every key of the original and of the result once, each with its true fate."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

from convbn.fuse.fold import fold
from convbn.fuse.frontends.torch.checkpoint.key_map import StateBefore, same_numbers
from convbn.fuse.plan.plan import Folded

SCHEMA = json.loads((Path(__file__).parents[3] / "fuse" / "fuse-report.schema.json").read_text())


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )


def fates(report):
    return {key.old or key.new: key.status for key in report.keys}


def test_a_module(randomised):
    module = randomised(net())
    folding = fold(module)
    assert [key.old for key in folding.report.keys if key.old] == list(module.state_dict())
    assert sorted(key.new for key in folding.report.keys if key.new) == sorted(folding.model.state_dict())
    found = fates(folding.report)
    assert found["0.weight"] == "changed"
    assert found["0.bias"] == "new"
    assert found["1.running_mean"] == "gone"
    assert found["3.num_batches_tracked"] in ("same", "gone")
    gone = next(key for key in folding.report.keys if key.old == "1.weight")
    assert (gone.new, gone.into) == (None, ("0",))
    jsonschema.validate(folding.report.to_dict(), SCHEMA)


def test_every_status_is_what_the_tensors_say(randomised):
    module = randomised(net())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    folding = fold(module)
    after = folding.model.state_dict()
    for key in folding.report.keys:
        if key.status in ("same", "changed"):
            assert torch.equal(before[key.old], after[key.new]) == (key.status == "same"), key
        elif key.status == "new":
            assert key.new not in before


def test_a_program(randomised):
    module = randomised(net())
    program = torch.export.export(module, (torch.randn(1, 3, 8, 8),), strict=False)
    found = fates(fold(program).report)
    assert found["0.weight"] == "changed"
    assert found.keys() >= module.state_dict().keys()


def test_a_wrapped_module(randomised):
    report = fold(nn.DataParallel(randomised(net()))).report
    assert fates(report)["0.weight"] == "changed"


def test_a_change_in_place_is_seen():
    module = nn.Conv2d(3, 4, 1)
    before = StateBefore(module)
    with torch.no_grad():
        module.weight.mul_(2)
    assert [key.status for key in before.keys(module, [])] == ["changed", "same"]


def test_gone_without_a_fold_is_gone_into_nothing():
    module = nn.Sequential(nn.Conv2d(3, 4, 1))
    before = StateBefore(module)
    keys = before.keys(nn.Sequential(), [Folded("00", ("1",), "x")])
    assert {(key.status, key.into) for key in keys} == {("gone", ())}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor(float("nan")), torch.tensor(float("nan")), True),
        (torch.tensor([1.0, float("nan")]), torch.tensor([2.0, float("nan")]), False),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
        (torch.zeros(2), torch.zeros(1, 2), False),
        (torch.zeros(2, device="meta"), torch.zeros(2, device="meta"), False),
        (torch.zeros(0), torch.zeros(0), True),
        (torch.tensor([True]), torch.tensor([True]), True),
        ({"a": 1}, {"a": 1}, False),
    ],
)
def test_same_numbers(one, other, same):
    assert same_numbers(one, other) is same
