"""The coverage report: what runs again, what is said of failures, and the networks behind it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from coverage_report import runs
from coverage_report.architectures import ARCHITECTURES, REPARAMETERISABLE, families
from coverage_report.latency import geometric_mean
from coverage_report.markdown import render
from coverage_report.peers import PEERS, Peer
from coverage_report.runs import Results, fold_state, jobs_for, key_of, run_jobs
from coverage_report.summary import summarise
from coverage_report.trained import as_trained, batchnorms, flip_signs

torch = pytest.importorskip("torch")
NAME = "tv_squeezenet1_1"


def test_the_list_is_long_and_wide_enough() -> None:
    assert len(ARCHITECTURES) >= 64
    assert len(families()) >= 42
    assert len({architecture.name for architecture in ARCHITECTURES}) == len(ARCHITECTURES)
    assert families() >= REPARAMETERISABLE


def test_only_what_changed_runs_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[runs.Job] = []

    def pretend(cache: Path, job: runs.Job) -> dict[str, object]:
        ran.append(job)
        return {"failure": None, "batchnorms": 0}

    monkeypatch.setattr(runs, "trial", pretend)
    jobs = jobs_for(cache, [NAME], ["convbn", "load-save"])
    for _ in range(2):
        run_jobs(cache, jobs, Results(cache / "results.jsonl"), lambda line: None)
    assert sorted(ran) == sorted(jobs)
    ran.clear()
    monkeypatch.setattr(runs, "fold_state", lambda: "rules were edited")
    run_jobs(cache, jobs, Results(cache / "results.jsonl"), lambda line: None)
    assert {tool for _, _, tool in ran} == {"convbn"}
    assert len(ran) == 2


def test_a_row_made_while_rules_were_edited_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["before", "after"])
    monkeypatch.setattr(runs, "fold_state", lambda: next(states))
    monkeypatch.setattr(runs, "trial", lambda cache, job: {"failure": None, "batchnorms": 0})
    job = (NAME, "", "convbn")
    results = Results(cache / "results.jsonl")
    run_jobs(cache, [job], results, lambda line: None)
    assert results.get(key_of(cache, job, "before")) is None


def test_the_state_of_the_rules_leaves_the_torch_frontend_out(tmp_path: Path) -> None:
    for path in ("fuse/rules/one.py", "fuse/frontends/torch/capture/module.py"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("1")
    first = fold_state(tmp_path)
    (tmp_path / "fuse/frontends/torch/capture/module.py").write_text("2")
    assert fold_state(tmp_path) == first
    (tmp_path / "fuse/rules/one.py").write_text("2")
    assert fold_state(tmp_path) != first


def test_a_failure_leaves_everything_and_a_missing_tool_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Peer("absent", "no-such-distribution", PEERS["load-save"].convert, "nothing")
    monkeypatch.setattr("coverage_report.summary.PEERS", {**PEERS, "absent": absent})
    failed = {"failure": "ValueError: no", "batchnorms": None, "error": None, "unrunnable": None}
    summary = summarise(cache, [NAME], ["convbn", "absent"], {(NAME, "", "convbn"): failed})
    total = summary["totals"]["tools"]["convbn"]
    assert (total["left"], total["failed"], total["wrong"]) == (1, 1, 0)
    text = render(summary)
    assert "| absent | – | missing |" in text
    assert "Not measured." in text


def test_what_could_not_be_exported_is_said(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{NAME}.json").write_text('{"failed": "RuntimeError: no such operator"}')
    summary = summarise(tmp_path, [NAME], [], {})
    assert summary["totals"]["models"] == 0
    assert "RuntimeError: no such operator" in render(summary)


def test_geometric_mean_is_symmetric_and_narrows_with_the_number_of_models() -> None:
    e = math.exp(0.1)
    mean = geometric_mean([{"median": m, "low": m / e, "high": m * e} for m in (2.0, 0.5)])
    assert mean is not None
    assert mean["median"] == pytest.approx(1.0)
    assert math.log(mean["high"]) == pytest.approx(0.1 / math.sqrt(2))
    assert math.log(mean["low"]) == pytest.approx(-0.1 / math.sqrt(2))
    assert geometric_mean([]) is None


def test_as_trained_leaves_nothing_constant_and_keeps_activations_in_size() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(30) for part in (torch.nn.Conv2d(8, 8, 1), torch.nn.BatchNorm2d(8))]
    for conv in layers[::2]:
        torch.nn.init.normal_(conv.weight, std=10.0)
        torch.nn.init.zeros_(conv.bias)
    x = torch.randn(1, 8, 4, 4)
    module = as_trained(torch.nn.Sequential(*layers), x, 0)
    assert all(float(p.detach().std()) > 0 for p in module.parameters())
    assert 0.1 < float(module(x).detach().std()) < 10
    assert not any(part._forward_pre_hooks for _, part in batchnorms(module))


def test_flipped_signs_are_of_both_kinds_and_told() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1), torch.nn.BatchNorm2d(64))
    flips = flip_signs(module, 0)
    assert set(flips) == {"1.weight"}
    assert set(np.unique(flips["1.weight"])) == {-1.0, 1.0}
    assert np.array_equal(module[1].weight.detach().numpy(), flips["1.weight"])
