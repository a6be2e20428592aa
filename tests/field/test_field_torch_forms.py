"""The report on networks of other libraries: every form of one network, and the page."""

from __future__ import annotations

import importlib.util
from multiprocessing import Pipe

import numpy as np
import onnx
import pytest
import torch
from field_torch.report import render, totals
from field_torch.ties import ties_between
from field_torch.trial import FORMS, _tried, trial
from onnx import helper, numpy_helper
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


def _sorter(weights: list[float], shift: float = 0.0) -> onnx.ModelProto:
    """Boxes in the order of their scores, which are ``x · weights``, a number each; moved by ``shift``."""
    nodes = [
        helper.make_node("Mul", ["x", "weights"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["best", "order"], "sort", axis=1),
        helper.make_node("Add", ["x", "shift"], ["boxes"]),
        helper.make_node("GatherElements", ["boxes", "order"], ["y"], axis=1),
    ]
    tensors = {"weights": np.array([weights], np.float32), "k": np.array([2]), "shift": np.float32([shift])}
    shapes = {"x": len(weights), "best": 2, "y": 2}
    x, *others = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, c]) for n, c in shapes.items())
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "sorter", [x], others, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_boxes_of_the_same_score_may_change_places_and_nothing_else() -> None:
    feeds = {"x": np.array([[1.0, 3.0, 2.0]], np.float32)}
    first, last = [1, 1 / 3, 0.1], [1 - 1e-6, 1 / 3 + 1e-6, 0.1]
    tied = ties_between(_sorter(first), _sorter(last), feeds)
    assert tied is not None
    assert tied.places == 2
    assert tied.explain_all
    assert 0 <= tied.margin <= 2 * tied.noise < 1e-5
    # What differs beside the order is seen, and so are other scores, and the same order with other boxes.
    moved = ties_between(_sorter(first), _sorter(last, shift=0.1), feeds)
    assert moved is not None
    assert not moved.explain_all
    assert ties_between(_sorter(first), _sorter([0.9, 1 / 3, 0.1]), feeds) is None
    same = ties_between(_sorter(first), _sorter(first), feeds)
    assert same is not None
    assert not same.explain_all


def test_the_page_says_how_close_the_scores_are() -> None:
    ties = {"places": 2, "margin": 1e-6, "noise": 2e-6, "error": 3e-7}
    good = {"failure": None, "before": 5, "left": 0, "verify": "equal", "kept": {}}
    forms = {"safetensors": good, "pt2": good, "onnx": {**good, "ties": ties}}
    rows = {"one": {"library": "a", "failure": None, "forms": forms}}
    page = render({"libraries": {}, "totals": totals(rows), "networks": rows})
    assert "0 of 5, equal (†) |" in page
    assert "at most 1.0e-06 apart" in page
