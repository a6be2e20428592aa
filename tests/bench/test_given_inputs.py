"""Inputs that a caller gives: a file, one sample or several, by name, in order, or as any nest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random
from torch import nn

import convbn
from convbn.bench.models.given import given_inputs
from convbn.errors import UsageError
from convbn.export.loading.open import source_of

SAMPLE = random(1, 3, 5, 5)


def graph() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    return model(nodes, {"x": [1, 3, 5, 5]}, ["y"], {"w": random(4, 3, 1, 1), **batchnorm_parameters(4)})


@pytest.mark.parametrize("form", ["mapping", "list", "tuple", "in order", "tensor", "file"])
def test_every_form_is_the_same_sample(form: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=SAMPLE)
    given: dict[str, Any] = {
        "mapping": {"x": SAMPLE},
        "list": [{"x": SAMPLE}],
        "tuple": ({"x": SAMPLE},),
        "in order": (SAMPLE,),
        "tensor": torch.from_numpy(SAMPLE),
        "file": tmp_path / "x.npz",
    }
    (sample,) = given_inputs(source_of(graph()), given[form]).inputs or ()
    assert np.array_equal(sample["x"], SAMPLE)
    verify = convbn.fuse(graph(), inputs=given[form]).report.verify
    assert verify["status"] == "equal"
    assert (verify["samples"], verify["seed"]) == (1, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"z": SAMPLE}, "gives no 'x'"), ((SAMPLE, SAMPLE), "has 2 values"), ([], "no sample")],
)
def test_what_does_not_fit_is_said(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        convbn.fuse(graph(), inputs=given)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
        return self.norm(self.conv(images[0])) * options["scale"] + (options["mask"] is None)


def test_a_module_takes_any_nest() -> None:
    nest = ([torch.from_numpy(SAMPLE)], {"scale": 2.0, "mask": None})
    other = ([torch.from_numpy(2 * SAMPLE)], {"scale": 3.0, "mask": None})
    verify = convbn.fuse(Nested().eval(), inputs=[nest, other]).report.verify
    assert (verify["status"], verify["samples"]) == ("equal", 2)
    assert convbn.verify(Nested().eval(), Nested().eval(), inputs=nest).samples == 1
    torch.manual_seed(0)
    same = Nested().eval()
    assert convbn.verify(same, same, inputs=[nest, other]).equal


def test_arrays_of_a_file_are_a_modules_arguments_in_their_order(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 4, 1)
    np.savez(tmp_path / "x.npz", whatever=SAMPLE)
    for given in ({"whatever": SAMPLE}, tmp_path / "x.npz", [{"input": SAMPLE}]):
        assert convbn.verify(module, module, inputs=given).equal


def test_an_export_is_verified_with_them() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    example = torch.from_numpy(SAMPLE)
    exported = convbn.export_onnx(module, example, inputs=(example,))
    assert convbn.verify(module, exported, inputs=(example,)).samples == 1
    with pytest.raises(UsageError, match="no sample"):
        convbn.export_onnx(module, example, inputs=[])
