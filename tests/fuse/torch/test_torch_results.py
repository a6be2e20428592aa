"""Results of forwards: plain objects are taken apart into their fields, values and tensors stay what they are."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from convbn.fuse.frontends.torch.modules.results import fields_of, nest_of

T = torch.zeros(2)


@dataclass
class Boxes:
    where: Any
    score: Any = 0.5


class Slotted:
    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = T


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.5, 1j, "text", b"bytes", np.zeros(2), np.float32(1), Boxes, len, Slotted()]
)
def test_what_is_a_value_by_itself(value: Any) -> None:
    assert fields_of(value) is None


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (Boxes(T), {"where": T, "score": 0.5}),
        (OrderedDict(a=T), {"a": T}),
        ([T, 1], {0: T, 1: 1}),
        ((T,), {0: T}),
        (SimpleNamespace(a=T, b=2), {"a": T, "b": 2}),
    ],
)
def test_what_consists_of_fields(value: Any, fields: dict[Any, Any]) -> None:
    assert fields_of(value) == fields


def test_objects_become_nests_for_tracers() -> None:
    result = {"boxes": [Boxes(T), SimpleNamespace(inner=Boxes(T, 1))], "loss": T}
    taken = nest_of(result)
    assert taken == {
        "boxes": [{"where": T, "score": 0.5}, {"inner": {"where": T, "score": 1}}],
        "loss": T,
    }
    assert taken["boxes"][0]["where"] is T


def test_an_object_that_holds_itself_has_an_end() -> None:
    ring = SimpleNamespace(value=T)
    ring.again = ring
    assert nest_of(ring) == {"value": T, "again": None}
