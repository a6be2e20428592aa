"""The PyTorch part of the report: what runs again, what ends a trial, and what is said of the rows."""

from __future__ import annotations

import json
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from coverage_report import isolated as isolation
from coverage_report import report, torch_runs
from coverage_report.isolated import isolated
from coverage_report.markdown import render
from coverage_report.runs import Results, fold_state
from coverage_report.summary import WRONG_ABOVE, summarise
from coverage_report.torch_markdown import render_torch
from coverage_report.torch_runs import torch_key, torch_row, torch_rows
from coverage_report.torch_summary import summarise_torch

pytest.importorskip("torch")
NAME = "tv_squeezenet1_1"


def row_of(**changes: dict[str, Any]) -> dict[str, Any]:
    """A good row, with changes by stage."""
    judged = {"failure": None, "original_changed": False, "error": 1e-7, "unrunnable": None}
    said = {"said": 0, "disagrees": False, "kept": {}, "folded": {"batchnorm-into-conv": 3}}
    times = {"capture_seconds": 0.5, "fold_seconds": 0.25}
    own = {**judged, **said, **times, "left": 0, "class_kept": True}
    row: dict[str, Any] = {
        "name": NAME,
        "seconds": 1.0,
        "network": {"failure": None, "bn_modules": 4, "called": 3, "batchnorms": 3, "unrunnable": None},
        "module": {**own, "left_modules": 0, "how": "Captured."},
        "graph": {**own, "not_exported": None, "before": 3, "export_seconds": 0.5},
        "fx": {**judged, "left": 1, "class_kept": False, "seconds": 0.125},
    }
    return {stage: row[stage] | changes.get(stage, {}) if stage in changes else row[stage] for stage in row}


def test_a_good_row_is_clean_and_torch_fx_may_be_bad() -> None:
    summary = summarise_torch({NAME: row_of(fx={"error": 1.0})})
    assert summary["clean"]
    assert summary["totals"]["fx"]["wrong"] == 1
    text = render_torch(summary)
    assert "no failure, no wrong result, no class changed" in text
    assert f"| {NAME} | 3 | 0 | 0 | 1 **wrong** | 1.0e-07 | 0.50 | 0.25 | 0.25 |  |" in text


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"failure": "ValueError: no"}, "failed"),
        ({"error": 2 * WRONG_ABOVE}, "wrong"),
        ({"error": None}, "wrong"),
        ({"unrunnable": "RuntimeError: no", "error": None, "left": None}, "wrong"),
        ({"original_changed": True}, "wrong"),
        ({"class_kept": False}, "class_changed"),
        ({"disagrees": True}, "miscounted"),
    ],
)
def test_whatever_is_bad_is_counted_and_said(form: str, change: dict[str, Any], count: str) -> None:
    summary = summarise_torch({NAME: row_of(**{form: change})})
    assert not summary["clean"]
    assert summary["totals"][form][count] == 1
    left = 3 if "failure" in change or "left" in change else 0
    assert summary["totals"][form]["left"] == left
    assert "**Not clean.**" in render_torch(summary)


def test_nothing_run_is_not_clean() -> None:
    assert not summarise_torch({})["clean"]
    summary = summarise_torch({NAME: row_of(network={"failure": "OSError: no disk"})})
    assert not summary["clean"]
    assert f"{NAME} was not run: OSError: no disk" in render_torch(summary)


def test_a_network_without_numbers_is_not_compared_and_not_called_wrong() -> None:
    nothing = {"error": None, "unrunnable": "its outputs hold Inf or NaN"}
    row = row_of(network={"unrunnable": nothing["unrunnable"]}, module=nothing, graph=nothing)
    assert summarise_torch({NAME: row})["clean"]
    assert f"{NAME} is not compared" in render_torch(summarise_torch({NAME: row}))


def test_only_what_changed_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def pretend(name: str) -> dict[str, Any]:
        ran.append(name)
        return row_of()

    monkeypatch.setattr(torch_runs, "torch_row", pretend)
    for _ in range(2):
        torch_rows([NAME], Results(tmp_path / "results.jsonl"), lambda line: None)
    assert ran == [NAME]
    states = iter(["before", "while", "after", "after"])
    monkeypatch.setattr(torch_runs, "fold_state", lambda *, torch: next(states))
    results = Results(tmp_path / "results.jsonl")
    torch_rows([NAME], results, lambda line: None)
    assert results.get(torch_key(NAME, "before")) is None
    torch_rows([NAME], results, lambda line: None)
    assert results.get(torch_key(NAME, "after")) is not None


def test_the_state_that_rows_depend_on_has_the_torch_frontend_in_it(tmp_path: Path) -> None:
    path = tmp_path / "fuse/frontends/torch/capture/module.py"
    path.parent.mkdir(parents=True)
    path.write_text("1")
    first = fold_state(tmp_path, torch=True)
    path.write_text("2")
    assert fold_state(tmp_path, torch=True) != first


def sends_and_hangs(sender: Connection) -> None:
    sender.send({"network": {"failure": None}})
    time.sleep(600)


def sends_and_dies(sender: Connection) -> None:
    sender.send({"network": {"failure": None}})
    sender.send({"module": {"failure": None}})
    os.abort()


def test_what_was_known_before_a_crash_or_the_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "PRELOAD", ())
    facts, ended = isolated(sends_and_dies, (), timeout_s=600)
    assert (list(facts), ended.split(" (")[0]) == (
        ["network", "module"],
        "the process ended with exit code -6",
    )
    # The clock stands until the first message is there, however long the process took to begin; then time is up.
    clock = iter([0, 0, 600])
    monkeypatch.setattr(isolation, "monotonic", lambda: next(clock))
    facts, ended = isolated(sends_and_hangs, (), timeout_s=600)
    assert (list(facts), ended) == (["network"], "not done in 600 s")


def test_a_stage_that_never_came_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"network": row_of()["network"], "module": row_of()["module"]}
    monkeypatch.setattr(torch_runs, "isolated", lambda *given, **named: (known, "not done in 300 s"))
    row = torch_row(NAME)
    assert row["graph"] == row["fx"] == {"failure": "not done in 300 s"}
    totals = summarise_torch({NAME: row})["totals"]
    assert (totals["module"]["failed"], totals["graph"]["failed"], totals["graph"]["left"]) == (0, 1, 3)


def test_only_torch_is_added_to_the_report_that_is_there(
    cache: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = summarise(cache, [NAME], [], {})
    target, page = tmp_path / "coverage.json", tmp_path / "coverage.md"
    command = [*arguments, "--only-torch"]
    for further in ([], ["--no-torch"]):
        with pytest.raises(SystemExit):
            report.main([*command, *further])
    assert "Not run." in render(summary)
    target.write_text(json.dumps(summary | {"schema_version": "1"}))
    with pytest.raises(SystemExit):
        report.main(command)
    target.write_text(json.dumps(summary))
    for row, code in ((row_of(), 0), (row_of(module={"class_kept": False}), 1)):
        monkeypatch.setattr(report, "torch_rows", lambda *given, row=row: {NAME: row})
        assert report.main(command) == code
        written = json.loads(target.read_text())
        assert written["torch"]["clean"] == (code == 0)
        assert {**written, "torch": None} == summary
        assert written["torch"]["models"][0]["name"] in page.read_text()
