"""Folders, patterns and lists of models: each by itself, one table, one JSON, the worst exit code."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random

from convbn.cli import main


def network(seed: int) -> onnx.ModelProto:
    weights = {"w": random(4, 3, 3, 3, seed=seed), **batchnorm_parameters(4, seed=seed + 1)}
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv"), batchnorm("y", "z")]
    return model(nodes, {"x": [1, 3, 8, 8]}, ["z"], weights)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models, one in a folder below, and a file that is none, with what must not be taken for a model."""
    folder = tmp_path / "models"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    onnx.save(network(0), folder / "a.onnx")
    onnx.save(network(1), folder / "deep" / "b.onnx")
    onnx.save(network(2), folder / ".hidden" / "c.onnx")
    (folder / "bad.onnx").write_text("no model")
    (folder / "notes.txt").write_text("no model either")
    return folder


def test_a_folder_is_folded_and_one_bad_file_costs_itself_alone(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    assert main(["fuse", str(models), "-o", str(out), "--json", str(report)]) == 3
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert made == ["a.onnx", "deep/b.onnx"]
    assert operators(onnx.load(out / "deep" / "b.onnx")) == ["Conv"]
    found = json.loads(report.read_text())
    assert found["counts"] == {"done": 2, "cached": 0, "failed": 1, "cancelled": 0}
    steps = {step["model"]: step for step in found["steps"]}
    assert sorted(steps) == ["a.onnx", "bad.onnx", "deep/b.onnx"]
    assert steps["a.onnx"]["report"]["batchnorm"] == {"before": 1, "after": 0}
    assert steps["a.onnx"]["report"]["report"]["verify"]["status"] == "equal"
    assert "is no model file" in steps["bad.onnx"]["error"]
    assert steps["bad.onnx"]["exit_code"] == 3
    shown = capsys.readouterr().out
    assert shown.index("bad.onnx") < shown.index("a.onnx  "), "failures come first"
    assert "deep/b.onnx" in shown


def test_nothing_is_replaced_and_nothing_begun_without_force(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "b.onnx").write_text("mine")
    (models / "bad.onnx").unlink()
    assert main(["fuse", str(models), "-o", str(out)]) == 5
    assert "deep/b.onnx: already exist" in capsys.readouterr().err
    assert not (out / "a.onnx").exists()
    assert (out / "deep" / "b.onnx").read_text() == "mine"
    assert main(["fuse", str(models), "-o", str(out), "--force", "--quiet"]) == 0
    assert operators(onnx.load(out / "deep" / "b.onnx")) == ["Conv"]


def test_patterns_lists_and_two_folders(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = [str(models / "a.onnx"), str(models / "deep" / "b.onnx")]
    assert main(["export", *given, "-o", str(out), "--suffix", ".onnx", "--precision", "fp16"]) == 0
    assert sorted(path.name for path in out.glob("*.onnx")) == ["a.onnx", "b.onnx"]
    capsys.readouterr()
    assert main(["inspect", str(models / "**" / "[ab].onnx")]) == 0
    assert "deep/b.onnx" in capsys.readouterr().out
    folded = tmp_path / "folded"
    assert main(["fuse", str(models / "[ab].onnx"), "-o", str(folded), "--quiet"]) == 0
    (models / "bad.onnx").unlink()
    report = tmp_path / "verify.json"
    assert main(["verify", str(models), str(folded), "--json", str(report)]) == 5
    steps = {step["model"]: step for step in json.loads(report.read_text())["steps"]}
    assert steps["a.onnx"]["status"] == "done"
    assert "does not exist" in steps["deep/b.onnx"]["error"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fuse", "models", "-o", "models/a.onnx"], "is a file; the results of many models need a folder"),
        (["fuse", "models/a.onnx", "models/deep/a.onnx", "-o", "out"], "would be written there"),
        (["fuse", "none/*.onnx", "-o", "out"], "no file matches"),
        (["inspect", "models/.hidden/empty"], "there is no model in this folder"),
        (["verify", "models", "models/a.onnx"], "folder against folder"),
        (["fuse", "models", "-o", "out", "--workers", "0"], "'0' is no whole number of at least 1"),
    ],
)
def test_what_makes_no_sense_is_said_before_work_begins(
    arguments: list[str],
    said: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (models / ".hidden" / "empty").mkdir()
    onnx.save(network(3), models / "deep" / "a.onnx")
    monkeypatch.chdir(tmp_path)
    if "--workers" in arguments:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    else:
        assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bench_of_a_folder_leaves_out_what_cannot_be_opened(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    quick = ["--runtime", "onnxruntime-cpu", "--budget", "0.2", "--no-memory", "--json", str(result)]
    assert main(["bench", str(models), *quick]) == 3
    assert "bad.onnx: is no model file" in capsys.readouterr().err
    assert [case["name"] for case in json.loads(result.read_text())["cases"]] == ["a", "b"]
