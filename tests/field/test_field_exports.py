"""The other exports of the coverage report: counted, judged against their own outputs, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coverage_report import report
from coverage_report import three_exports as module
from coverage_report.exports import FORMS, form_path
from coverage_report.exports_markdown import render_exports
from coverage_report.runs import Results
from coverage_report.summary import is_wrong, summarise
from coverage_report.three_exports import exports
from coverage_report.trial import write_tiny

NAME = "tv_squeezenet1_1"


def legacy(cache: Path) -> Path:
    """The tiny model as the older exporter's file; what the newer one's file gives is made useless."""
    path = form_path(cache, NAME, "legacy")
    path.parent.mkdir()
    write_tiny(path)
    arrays = cache / "models" / f"{NAME}.npz"
    stored = dict(np.load(arrays))
    np.savez(arrays, **stored | {"reference_0_0": stored["reference_0_0"] + 100})
    return path


def test_an_export_is_judged_against_its_own_outputs_and_made_once(cache: Path) -> None:
    legacy(cache)
    told: list[str] = []
    for _ in range(2):
        parts = exports(
            cache, [NAME], Results(cache / "results.jsonl"), told.append, libraries=(), timed=(), budget_s=1
        )
    assert told == [f"convbn {NAME} dynamo: 0", f"convbn {NAME} legacy: 0"]
    assert parts["dynamo"]["totals"]["left"] == 0
    total = parts["legacy"]["totals"]
    assert [total[name] for name in ("before", "left", "wrong", "invalid", "failed")] == [1, 0, 0, 0, 0]
    assert parts["legacy-open"]["totals"] is None


def test_a_wrong_output_of_an_export_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legacy(cache)
    nothing = {"failure": None, "kept": {}, "folded": {}, "cpu_seconds": 0.0, "process_cpu_seconds": 0.0}
    row = nothing | {"batchnorms": 0, "nodes": 1, "error": 0.5, "unrunnable": None}
    monkeypatch.setattr(module, "run_tool", lambda *given, **options: row)
    parts = exports(
        cache, [NAME], Results(cache / "results.jsonl"), lambda line: None, libraries=(), timed=(), budget_s=1
    )
    assert parts["legacy"]["totals"]["wrong"] == 1
    assert is_wrong(parts["legacy"]["models"][0]["tools"]["convbn"])


def test_every_export_has_its_line_and_what_was_not_measured_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legacy(cache)
    slow = {
        "failure": None,
        "ratio": {"median": 1.2, "low": 1.1, "high": 1.3},
        "milliseconds": {"untouched": 1.0, "convbn": 1.2},
        "verdict": "slower",
        "noise_floor": 0.01,
    }
    monkeypatch.setattr(module, "latencies", lambda *given, **options: {NAME: slow})
    summary = summarise(cache, [NAME], [], {})
    assert render_exports(summary) == "Not measured."
    forms = exports(
        cache,
        [NAME],
        Results(cache / "results.jsonl"),
        lambda line: None,
        libraries=("onnxruntime",),
        timed=FORMS[1:2],
        budget_s=1,
    )
    authors = {NAME: slow | {"verdict": "faster"}}
    made = {"environment": summary["environment"], "forms": forms, "by_authors": authors}
    text = render_exports({"exports": made})
    assert "| dynamo, batch 1 | 1 | 0 of 1 | 1 | 0 | 0 | 0 |" in text
    assert f"| {NAME} | 1.200 [1.100, 1.300] faster | 1.200 [1.100, 1.300] slower |" in text
    assert "| TorchScript, batch 1 | 1 | 0 of 1 | 1 | 0 | 0 | 0 |" in text
    assert "| 1.200 [1.104, 1.305] | not measured | 1 | not measured | not measured |" in text
    assert "| TorchScript, open batch | 0 |" in text
    assert f"| {NAME} | 1.200 [1.100, 1.300] slower | not measured |" in text


def test_the_exports_alone_are_added_to_the_report_that_is_there(
    cache: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = summarise(cache, [NAME], [], {}) | {"latency": {"all": None}, "schema_version": "3"}
    target, page = tmp_path / "coverage.json", tmp_path / "coverage.md"
    command = [*arguments, "--only-exports"]
    with pytest.raises(SystemExit):
        report.main(command)
    target.write_text(json.dumps(summary))
    monkeypatch.setattr(report, "export_legacy", lambda *given: None)
    for wrong in (0, 1):
        total = {
            "models": 1,
            "before": 1,
            "left": 1,
            "clean": 0,
            "largest_error": None,
            "invalid": 0,
            "failed": 0,
        }
        forms = {"dynamo": {"models": [], "latency": {}, "totals": total | {"wrong": wrong}}}
        monkeypatch.setattr(report, "exports", lambda *given, forms=forms, **options: forms)
        assert report.main(command) == wrong
        written = json.loads(target.read_text())
        assert written.pop("exports")["forms"] == forms
        assert "latency" not in written
        assert written["models"] == summary["models"]
        assert f"| dynamo, batch 1 | 1 | 1 of 1 | 0 | {wrong} |" in page.read_text()


def test_what_came_out_slower_is_measured_again_for_longer(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coverage_report import latency

    def pretend(path: Path, folded: object, budget_s: float, runtime: str) -> dict[str, object]:
        verdict = "slower" if budget_s < 4 else "no difference detected"
        return {"failure": None, "ratio": None, "verdict": verdict, "seconds": budget_s}

    monkeypatch.setattr(latency, "measured", pretend)
    told: list[str] = []
    for _ in range(2):
        results = Results(cache / "results.jsonl")
        (row,) = latency.latencies(cache, [NAME], results, told.append, budget_s=1).values()
        assert (row["verdict"], row["seconds"]) == ("no difference detected", 4)
        assert (row["first"]["verdict"], row["first"]["seconds"]) == ("slower", 1)
    assert len(told) == 2
