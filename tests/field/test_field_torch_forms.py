"""The report on networks of other libraries: every form of one network, and the page."""

from __future__ import annotations

import importlib.util
from multiprocessing import Pipe

import pytest
import torch
from field_torch.report import render, totals
from field_torch.trial import FORMS, _tried, trial
from torch import nn


@pytest.mark.parametrize("form", FORMS)
def test_a_network_in_every_form(form: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    facts = _tried(FORMS[form], module, torch.randn(1, 3, 8, 8))
    assert facts["failure"] is None
    assert (facts["before"], facts["left"], facts["verify"]) == (1, 0, "equal")
    assert facts["size"] > 400


def test_a_form_that_fails_is_its_rows_reason() -> None:
    assert "Error" in _tried(FORMS["pt2"], nn.Linear(3, 3), torch.randn(1, 4))["failure"]


@pytest.mark.skipif(importlib.util.find_spec("ultralytics") is not None, reason="it is installed here")
def test_a_library_that_is_missing_is_named() -> None:
    receiver, sender = Pipe(duplex=False)
    trial("yolov8n", 0, sender)  # type: ignore[arg-type]  # what a pipe's end is called differs by system
    assert receiver.recv() == {"failure": "ultralytics is not installed"}


def test_the_page_names_what_failed() -> None:
    good = {"failure": None, "before": 5, "left": 1, "verify": "equal", "kept": {"several-readers": 1}}
    bad = {"failure": "RuntimeError: no such operator"}
    row = {"library": "a", "failure": None, "forms": {"safetensors": good, "pt2": good, "onnx": bad}}
    rows = {"one": row, "two": {"library": "b", "failure": "b is not installed", "forms": {}}}
    page = render({"libraries": {"torch": "2"}, "totals": totals(rows), "networks": rows})
    assert "| a | one | 1 of 5, equal | 1 of 5, equal | failed | several-readers 1 |" in page
    assert "* one, onnx: `RuntimeError: no such operator`" in page
    assert "* two, pt2: `b is not installed`" in page
    assert totals(rows)["onnx"] == {"networks": 1, "failed": 1, "before": 0, "left": 0}
