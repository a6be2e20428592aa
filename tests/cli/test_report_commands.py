"""``report``, ``compare``, ``history`` and the gates of ``bench`` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import bench_results

from convbn.cli import main, parser


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(bench_results.one()))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_every_report_comes_from_a_stored_result(result: Path, tmp_path: Path) -> None:
    options = {
        "--html": "r.html",
        "--markdown": "r.md",
        "--junit": "r.xml",
        "--github-benchmark": "g.json",
        "--bencher": "b.json",
        "--step-summary": "s.md",
    }
    words = [word for option, name in options.items() for word in (option, tmp_path / name)]
    assert run("report", result, *words, "--fail-if", "error > 1", "--allow-not-measured") == 0
    for name in options.values():
        assert (tmp_path / name).stat().st_size > 100
    assert run("report", result, "--html", tmp_path / "r.html") == 5  # it exists
    assert run("report", result, "--html", tmp_path / "r.html", "--force") == 0


def test_the_step_summary_is_appended_to_and_stays_below_its_limit(result: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("a" * 900_000 + "\n")
    for _ in range(2):
        assert run("report", result, "-q", "--step-summary", summary) == 0
    text = summary.read_text()
    assert text.startswith("aaa")
    assert text.count("### resnet18") == 2
    summary.write_text("a" * 997_500)
    assert run("report", result, "-q", "--step-summary", summary) == 0
    assert summary.stat().st_size < 1_000_000
    assert "the JSON result has everything" in summary.read_text()
    summary.write_text("a" * 999_999)
    assert run("report", result, "-q", "--step-summary", summary) == 5
    assert summary.stat().st_size == 999_999
    assert run("report", result, "-q", "--step-summary", "") == 0  # the variable is not set


def test_a_gate_that_fails_is_a_sentence_and_exit_code_1(result: Path, capsys: Any) -> None:
    assert run("report", result, "-q", "--fail-if", "batchnorm.left > 0") == 1
    error = capsys.readouterr().err
    told = "must hold: batchnorm.left ≤ 0 → does not hold: batchnorm.left is 1"
    assert error.startswith(f"convbn: gate: resnet18: {told}")
    assert error.count("\n") == 1


def test_what_was_not_measured_fails_a_gate_unless_told_otherwise(result: Path, capsys: Any) -> None:
    assert run("report", result, "-q", "--fail-if", "ratio > 2") == 1
    error = capsys.readouterr().err
    assert "cannot be judged" in error
    assert "--allow-not-measured" in error
    assert run("report", result, "-q", "--fail-if", "ratio > 2", "--allow-not-measured") == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--fail-if", "speed > 1"), 2),
        (("--fail-if", "change > 1"), 2),
        (("--baseline-any-machine",), 2),
        (("--json", "-", "--markdown", "-"), 2),
        (("--html", "-"), 2),
        (("--baseline", "missing.json"), 5),
        (("--step-summary", "."), 5),
    ],
)
def test_what_makes_no_sense_is_refused(
    result: Path, arguments: tuple[str, ...], code: int, capsys: Any
) -> None:
    assert run("report", result, "-q", *arguments) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_baseline_of_another_machine_is_refused_unless_told_otherwise(
    result: Path, tmp_path: Path, capsys: Any
) -> None:
    other = bench_results.one()
    other["environment"]["cpu"] = "Xeon"
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps(other))
    skip = "--allow-not-measured"
    assert run("report", result, "-q", "--baseline", baseline, skip) == 3
    assert "CPU Xeon → AMD EPYC" in capsys.readouterr().err
    assert run("report", result, "-q", "--baseline", baseline, "--baseline-any-machine", skip) == 0
    assert run("compare", baseline, result) == 3
    assert run("compare", baseline, result, "--any-machine") == 0


def test_compare_says_what_changed(result: Path, tmp_path: Path, capsys: Any) -> None:
    changed = bench_results.one()
    row = changed["cases"][0]["rows"][1]
    row["block_seconds"] = [value * 1.2 for value in row["block_seconds"]]
    after = tmp_path / "after.json"
    after.write_text(json.dumps(changed))
    assert run("bench", "compare", result, after, "--json", "-") == 0
    value = json.loads(capsys.readouterr().out)
    slower = [change for change in value["changes"] if change["verdict"] == "slower"]
    assert [(change["runtime"], change["side"]) for change in slower] == [("onnxruntime-cpu@off", "folded")]
    assert run("compare", result, after, "--markdown", tmp_path / "c.md") == 0
    assert "1 slower" in capsys.readouterr().out
    assert "| ▲ slower |" in (tmp_path / "c.md").read_text()


def test_history_writes_a_page(result: Path, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "page.html"
    (tmp_path / "broken.json").write_text("{")
    assert run("bench", "history", tmp_path, "-o", page) == 0
    assert "left out: broken.json" in capsys.readouterr().out
    assert "<svg" in page.read_text()
    assert run("history", tmp_path, "-o", page) == 5
    assert run("history", tmp_path / "missing", "-o", tmp_path / "p2.html") == 5


def test_an_old_result_is_refused_with_the_way_out(tmp_path: Path, capsys: Any) -> None:
    old = tmp_path / "old.json"
    old.write_text('{"schema_version": "1"}')
    for arguments in (("report", old), ("compare", old, old), ("report", old, "--fail-if", "ratio > 1")):
        assert run(*arguments) == 3
        assert "measure again with convbn bench --json" in capsys.readouterr().err


def test_a_model_called_compare_can_still_be_measured() -> None:
    assert parser().parse_args(["bench", "./compare"]).input == "./compare"


@pytest.mark.slow
def test_bench_measures_again_before_a_gate_counts(convbn: Any, small: Path, tmp_path: Path) -> None:
    result = convbn(
        *("bench", small, "--runtime", "onnxruntime-cpu@off", "--budget", "0.4", "--threads", "1"),
        *(
            "--no-memory",
            "--json",
            "first.json",
            "--junit",
            "gates.xml",
            "--fail-if",
            "latency.median > 0 ns",
        ),
    )
    assert result.returncode == 1
    assert "a gate failed; measuring again in onnxruntime-cpu@off" in result.stdout
    assert "a second run confirms it" in result.stderr
    assert (tmp_path / "first.json").exists()
    assert "<failure" in (tmp_path / "gates.xml").read_text()


def test_bench_refuses_a_bad_gate_before_it_measures(convbn: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "far.json").write_text(json.dumps(bench_results.one()))
    for arguments, code in (
        (("--fail-if", "ratio >"), 2),
        (("--baseline", "far.json"), 3),
        (("--junit", "far.json"), 5),
    ):
        result = convbn("bench", small, "--budget", "60", *arguments)
        assert result.returncode == code, result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize(("extra", "code"), [((), 1), (("--allow-not-measured",), 0)])
def test_a_side_that_ran_nowhere_fails_the_bench(
    convbn: Any, small: Path, tmp_path: Path, extra: tuple[str, ...], code: int
) -> None:
    unknown = onnx.load(small)
    unknown.graph.node[2].op_type = "Mystery"
    onnx.save(unknown, tmp_path / "unknown.onnx")
    short = ("--runtime", "onnxruntime-cpu", "--budget", "0.2", "--no-memory")
    result = convbn("bench", small, "unknown.onnx", *short, *extra)
    assert result.returncode == code, result.stderr
    assert ("unknown.onnx of small was measured nowhere" in result.stderr) == bool(code)


def test_so_does_a_batch_size_that_ran_nowhere(convbn: Any, small: Path) -> None:
    """The model is for two samples: asked for three besides, it runs with two alone."""
    short = ("--runtime", "onnxruntime-cpu", "--budget", "0.2", "--no-memory", "--batch", "2,3")
    result = convbn("bench", small, *short)
    assert result.returncode == 1, result.stderr
    assert "of small · batch 3 was measured nowhere" in result.stderr
    assert convbn("bench", small, *short, "--allow-not-measured").returncode == 0
