"""Outputs of PyTorch models that are no plain tensors are compared field by field."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convbn
from convbn.bench.models.outputs import named_outputs

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Found:
    boxes: torch.Tensor
    scores: torch.Tensor | None = None
    names: Any = ()


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value
        self.itself = self


def test_every_kind_of_output_has_a_name_and_its_numbers() -> None:
    ones = torch.ones(2)
    result = [
        Found(ones, names=["a", {"b": ones * 2}]),
        Plain(ones * 3),
        UserDict({"k": ones * 4}),
        torch.eye(2).to_sparse(),
        torch.nested.nested_tensor([ones, torch.ones(3)]),
        None,
        7,
    ]
    named = dict(named_outputs(result))
    assert {name: array.tolist() for name, array in named.items()} == {
        "output[0].boxes": [1, 1],
        "output[0].names[0]": "a",
        "output[0].names[1]['b']": [2, 2],
        "output[1].value": [3, 3],
        "output[2].k": [4, 4],
        "output[3]": [[1, 0], [0, 1]],
        "output[4][0]": [1, 1],
        "output[4][1]": [1, 1, 1],
        "output[6]": 7,
    }
    assert all(isinstance(array, np.ndarray) for array in named.values())


class Returns(nn.Module):
    def __init__(self, wrap: Any, factor: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.wrap, self.factor = wrap, factor

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.norm(self.conv(x)) * self.factor)


WRAPS = {
    "dataclass": Found,
    "object": Plain,
    "list-of-dataclasses": lambda y: [Found(y.flatten(1), y.mean((2, 3)))],
}


@pytest.mark.parametrize("name", WRAPS)
def test_a_fold_is_verified_and_a_difference_is_seen(name: str) -> None:
    torch.manual_seed(0)
    module = Returns(WRAPS[name]).eval()
    model, report = convbn.fuse(module, X)
    assert (report.batchnorm.after, report.verify["status"]) == (0, "equal")
    model.factor = 1.5
    assert convbn.verify(module, model, example_inputs=X).status == "different"
