"""Kernels counted before and after a fold: what is a fault, and what only looks like one."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from coverage_report.kernels import Change, main
from support.graphs import Writer, model, random

BEFORE = {
    "Conv": 4,
    "Conv+Relu": 3,
    "Conv+sum": 2,
    "BatchNormalization+Relu": 2,
    "Gelu": 1,
    "Gemm": 2,
    "Reshape": 4,
}


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({}, False),
        ({"Add": 1}, True),
        ({"Add": 1, "Conv": -1}, False),
        # Fused kernels that are broken up count also where layers that went make up for it.
        ({"Gelu": -1, "Erf": 1, "Mul": 2, "Conv": -4}, True),
        ({"Conv+Relu": -1, "Conv": 1, "Relu": 1, "BatchNormalization+Relu": -2}, True),
        ({"Gemm": -1, "Mul": 1}, True),
        # A ReLU that stood behind a BatchNorm; a sum that is done with an activation; views; less in one kernel.
        ({"BatchNormalization+Relu": -2, "Relu": 2}, False),
        ({"Conv+sum": -1, "Conv+Relu": -1, "Conv+sum+Relu": 1, "Relu": 0}, False),
        ({"Reshape": 40}, False),
        ({"Gemm": -2, "MatMul": 2, "Reshape": -4}, False),
        ({"Conv+sum": -2, "Conv": 2}, False),
    ],
)
def test_what_is_a_fault(more: dict[str, int], fault: bool) -> None:
    after = {kind: BEFORE.get(kind, 0) + more.get(kind, 0) for kind in BEFORE | more}
    assert Change(BEFORE, after).is_fault == fault


def test_the_program_counts_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = Writer()
    y = w("Relu", w.batchnorm(w("Conv", "x", random(4, 4, 1, 1)), 4))
    y = w("Concat", y, w.batchnorm(w("Sigmoid", "x"), 4), axis=1)
    onnx.save(model(w.nodes, {"x": [1, 4, 5, 5]}, [y], w.constants), tmp_path / "small.onnx")
    assert main([str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    counted = json.loads((tmp_path / "out.json").read_text())["small"]
    assert counted["before"]["Conv+Relu"] == counted["after"]["Conv+Relu"] == 1
    assert not counted["fault"]
    assert "1 files, 0 with more kernels" in capsys.readouterr().out
