"""One tool on one file: what it must not count as good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from coverage_report import runs
from coverage_report.graphs import count_batchnorms, multiply_initializers, relative_error
from coverage_report.runs import trial
from coverage_report.summary import WRONG_ABOVE, is_wrong
from coverage_report.trial import judge, write_tiny

NAME = "tv_squeezenet1_1"


def test_convbn_folds_the_file_in_a_process_of_its_own(cache: Path) -> None:
    row = trial(cache, (NAME, "", "convbn"))
    assert row["failure"] is None
    assert row["batchnorms"] == 0
    assert row["error"] < 1e-6
    assert row["truth_error"] < 1e-6
    assert 0 < row["cpu_seconds"] < row["process_cpu_seconds"]
    assert not is_wrong(row)


def test_doing_nothing_leaves_the_batchnorm(cache: Path) -> None:
    assert trial(cache, (NAME, "", "load-save"))["batchnorms"] == 1


def test_a_file_that_cannot_be_read_is_a_failure_not_a_crash(cache: Path) -> None:
    (cache / "models" / f"{NAME}.onnx").write_bytes(b"\xff" * 40)
    row = trial(cache, (NAME, "", "load-save"))
    assert "DecodeError" in row["failure"]
    assert row["batchnorms"] is None


def test_a_tool_that_hangs_is_a_failure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "TIMEOUT_S", 0.01)
    assert trial(cache, (NAME, "", "load-save"))["failure"] == "not done in 0.01 s"


def test_a_wrong_output_is_called_wrong(cache: Path, tmp_path: Path) -> None:
    source = cache / "models" / f"{NAME}.onnx"
    model = onnx.load(source)
    assert multiply_initializers(model, {"s": np.full(1, 1 + 4 * WRONG_ABOVE)})
    onnx.save(model, tmp_path / "wrong.onnx")
    assert not is_wrong({"failure": None, **judge(source, source)})
    assert is_wrong({"failure": None, **judge(source, tmp_path / "wrong.onnx")})


def test_an_output_that_does_not_run_is_wrong_and_invalid(cache: Path, tmp_path: Path) -> None:
    source = cache / "models" / f"{NAME}.onnx"
    model = onnx.load(source)
    model.graph.node[1].input[0] = "nobody"
    onnx.save(model, tmp_path / "broken.onnx")
    row: dict[str, Any] = {"failure": None, **judge(source, tmp_path / "broken.onnx")}
    assert row["invalid"]
    assert is_wrong(row)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_no_number_is_wrong(cache: Path, tmp_path: Path, value: float) -> None:
    source = cache / "models" / f"{NAME}.onnx"
    model = onnx.load(source)
    assert multiply_initializers(model, {"b": np.full(1, value)})
    onnx.save(model, tmp_path / "broken.onnx")
    assert is_wrong({"failure": None, **judge(source, tmp_path / "broken.onnx")})


def test_outputs_of_other_shapes_have_no_error() -> None:
    assert relative_error([np.ones(2)], [np.ones((2, 2))]) is None
    assert relative_error([np.ones(2)], []) is None


def test_batchnorms_in_branches_count(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.onnx")
    inner = onnx.load(tmp_path / "tiny.onnx").graph
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    outer = onnx.helper.make_graph([node], "outer", [], [])
    assert count_batchnorms(onnx.helper.make_model(outer)) == 2


def test_nothing_is_multiplied_where_a_name_is_missing(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.onnx")
    model = onnx.load(tmp_path / "tiny.onnx")
    before = model.SerializeToString()
    assert not multiply_initializers(model, {"s": -np.ones(1), "elsewhere.weight": -np.ones(1)})
    assert model.SerializeToString() == before
