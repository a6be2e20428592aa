"""The Python API in a notebook and a script: short texts, pages, gates, logging, inputs as people have them."""

from __future__ import annotations

import logging
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convbn
from convbn.bench.results.result import BenchResult

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def module() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()


@pytest.fixture(scope="module")
def example() -> Any:
    return np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def measured(module: Any, example: Any) -> BenchResult:
    options = convbn.BenchOptions(budget_seconds=0.1, min_blocks=3, memory=False)
    return convbn.bench(module, example_inputs=example, runtimes=["torch-cpu"], options=options)


def test_a_fold_is_said_in_a_line_and_shown_in_a_notebook(module: Any, example: Any) -> None:
    result = convbn.fuse(module, example)  # a NumPy array, where a tensor would do
    assert re.fullmatch(r"<FuseResult: Sequential, Equal ✓ \(.*\) · 1 of 1 folded>", repr(result))
    assert str(result.report).endswith("1 of 1 folded")
    assert repr(result.report).startswith("<Report of torch.nn.Module: Equal ✓")
    text = result.report.summary(width=80)
    assert "BatchNorm" in text
    assert max(map(len, text.splitlines())) <= 80
    for shown in (result, result.report):
        page = shown._repr_html_()
        assert 'class="banner' in page
        assert 'class="network"' in page
        assert "<script" not in page
        assert "@scope" in page  # its styles do not touch the notebook around it
    model, report = result
    assert isinstance(model, torch.nn.Sequential)
    assert report.batchnorm.after == 0


def test_example_inputs_may_be_a_dict_of_arrays(module: Any, example: Any) -> None:
    assert convbn.fuse(module, {"input": example}).report.verify["status"] == "equal"


def test_a_measurement_is_said_saved_and_judged(measured: BenchResult, tmp_path: Path) -> None:
    assert re.match(r"<BenchResult of 1 case: Equal ✓ ", repr(measured))
    assert "in eager PyTorch" in str(measured)
    assert "Times and time ratios" in measured.summary(width=100)
    page = measured._repr_html_()
    assert 'class="banner' in page
    assert "How to reproduce" not in page
    for save, name, start in (
        (measured.save_html, "r.html", "<!doctype html>"),
        (measured.save_markdown, "r.md", "### "),
        (measured.save_json, "r.json", "{"),
    ):
        save(tmp_path / name)
        assert (tmp_path / name).read_text().startswith(start)
        with pytest.raises(convbn.FileAccessError):
            save(tmp_path / name)
        save(tmp_path / name, overwrite=True)
    held, failed = convbn.gates(measured, "batchnorm.left > 0", "ratio.median > 0.0001")
    assert (held.status, failed.status) == ("passed", "failed")
    assert held.must == "batchnorm.left ≤ 0"
    assert [one.key for one in convbn.gates(measured.to_dict(), "batchnorm.left > 0")] == [held.key]
    with pytest.raises(convbn.UsageError):
        convbn.gates(measured, "speed > 1")


def test_equality_is_said_in_a_line(module: Any, example: Any) -> None:
    answer = convbn.verify(module, convbn.fuse(module, example).model, example_inputs=example)
    assert str(answer).startswith("equal: ")
    assert repr(answer).startswith("<Equality equal: ")
    assert "Equal ✓" in answer._repr_html_()


def test_what_goes_on_is_logged_under_convbn(module: Any, example: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="convbn"):
        convbn.fuse(module, example)
        options = convbn.BenchOptions(budget_seconds=0.1, min_blocks=3, memory=False)
        phases: list[str] = []
        convbn.bench(
            module,
            example_inputs=example,
            runtimes=["torch-cpu"],
            options=options,
            progress=lambda phase, *_: phases.append(phase),
        )
    told = [record.getMessage() for record in caplog.records if record.name == "convbn"]
    assert any("1 of 1 folded" in line for line in told)
    assert phases
    assert set(phases) <= set(told)


def test_nothing_is_printed_unless_asked_for() -> None:
    code = (
        "import torch, convbn\n"
        "m = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)).eval()\n"
        "convbn.fuse(m, torch.zeros(1, 1, 2, 2) + 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_errors_name_arguments_and_not_options(module: Any, tmp_path: Path) -> None:
    grid = convbn.BenchGrid(batches=(2,))
    with pytest.raises(convbn.ConvBNError) as failed:
        convbn.bench(module, grid=grid, runtimes=["torch-cpu"])
    assert not re.search(r"--[a-z]", str(failed.value))
    assert "input_shapes" in str(failed.value)
    with pytest.raises(convbn.UsageError) as refused:
        convbn.compare_layers(module, module)
    assert "fold=False" in str(refused.value)


def test_a_missing_package_says_how_to_get_it() -> None:
    from convbn.common.public import public

    def needs() -> None:
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    with pytest.raises(convbn.NotSupportedError, match=r"pip install 'convbn\[openvino\]'"):
        public(needs, "needs")()


def test_public_functions_are_pickled_by_name() -> None:
    for name in ("fuse", "bench", "verify", "fuse_file", "inspect", "gates"):
        function = getattr(convbn, name)
        assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301 - made one line up
