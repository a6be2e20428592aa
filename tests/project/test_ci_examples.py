"""The CI files: they parse, their shell parses, their commands exist, and the action's steps run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.cli import parser

ROOT = Path(__file__).parents[2]
yaml = pytest.importorskip("yaml")
FILES = ("action.yml", "examples/ci/github.yml", "examples/ci/gitlab.yml")


def loaded(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def scripts(value: Any) -> Iterator[str]:
    """Every shell script in a CI file."""
    if isinstance(value, list):
        for item in value:
            yield from scripts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("run", "script"):
                yield "\n".join(item) if isinstance(item, list) else item
            else:
                yield from scripts(item)


@pytest.mark.parametrize("name", FILES)
def test_the_shell_in_it_parses(name: str) -> None:
    found = list(scripts(loaded(name)))
    assert found
    for script in found:
        plain = re.sub(r"\$\{\{.*?\}\}", "x", script)
        done = subprocess.run(["bash", "-n"], input=plain, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FILES)
def test_no_expression_stands_inside_a_script(name: str) -> None:
    for script in scripts(loaded(name)):
        assert "${{" not in script  # whoever names a model would write into the shell


@pytest.mark.parametrize("name", FILES)
def test_every_convbn_command_is_one_of_ours(name: str) -> None:
    verbs = []
    for script in scripts(loaded(name)):
        for line in script.replace("\\\n", " ").splitlines():
            if line.strip().startswith("convbn "):
                words = [word for word in shlex.split(line)[1:] if word != "${options[@]}"]
                numbers = {"$THREADS": "2", "$BUDGET": "20"}
                verbs.append(parser().parse_args([numbers.get(word, word) for word in words]).verb)
    assert (
        verbs
        == {
            "action": ["run", "fuse", "bench"],
            "github": ["verify"],
            "gitlab": ["fuse", "verify", "bench", "run"],
        }[Path(name).stem]
    )


def test_the_workflow_gives_the_action_what_it_takes() -> None:
    action, workflow = loaded("action.yml"), loaded("examples/ci/github.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    given = [step["with"] for step in steps if "/convbn@" in step.get("uses", "")]
    assert len(given) == 2
    for inputs in given:
        assert set(inputs) <= set(action["inputs"])
        assert ("model" in inputs) != ("plan" in inputs)
    for name in re.findall(
        r"steps\.convbn\.outputs\.([\w-]+)", (ROOT / "examples/ci/github.yml").read_text()
    ):
        assert name in action["outputs"]
    for other in steps:
        assert "@" in other.get("uses", "@")


def test_every_input_of_the_action_is_used_and_documented() -> None:
    text = (ROOT / "action.yml").read_text()
    for name, value in loaded("action.yml")["inputs"].items():
        assert f"inputs.{name}" in text
        assert value["description"].endswith(".")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    parameters = {"w": random(6, 3, 3, 3), **batchnorm_parameters(6)}
    onnx.save(model(nodes, {"x": [2, 3, 8, 8]}, ["y"], parameters), tmp_path / "my model.onnx")
    return tmp_path


def steps_of_the_action(work: Path, **inputs: str) -> list[subprocess.CompletedProcess[str]]:
    """Run the shell steps of the action as a runner does, but for the installation."""
    action = loaded("action.yml")
    values = {name: value.get("default", "") for name, value in action["inputs"].items()} | inputs
    done = []
    for step in action["runs"]["steps"]:
        if "run" not in step or "pip install" in step["run"] or not applies(step.get("if", ""), values):
            continue
        environment = {
            key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], text)
            for key, text in step.get("env", {}).items()
        }
        done.append(ran(step["run"], work, environment))
    return done


def applies(condition: str, values: dict[str, str]) -> bool:
    """Whether a step is run: its condition is made of comparisons of inputs with nothing."""
    found = re.findall(r"inputs\.([\w-]+) (==|!=) ''", condition)
    assert len(found) == condition.count("inputs.")
    return all((values[name] == "") == (relation == "==") for name, relation in found)


def ran(script: str, work: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script as a runner of GitHub or GitLab does, with this convbn on the path."""
    (work / "bin").mkdir(exist_ok=True)
    command = work / "bin" / "convbn"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m convbn "$@"\n')
    command.chmod(0o755)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
        cwd=work,
        env={
            **os.environ,
            **environment,
            "PATH": f"{command.parent}:{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(work / "summary.md"),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_the_action_folds_measures_publishes_and_then_fails_by_a_gate(work: Path) -> None:
    (work / "summary.md").write_text("before\n")
    fast = {"model": "my model.onnx", "runtime": "onnxruntime-cpu@off", "budget": "0.5", "threads": "1"}
    gates = "batchnorm.left > 0\nbatchnorm.folded > 0\n"
    fuse, bench = steps_of_the_action(work, **fast, **{"fail-if": gates})
    assert fuse.returncode == 0, fuse.stderr
    assert not [node for node in onnx.load(work / "folded.onnx").graph.node if "Norm" in node.op_type]
    assert bench.returncode == 1
    assert "convbn: gate: " in bench.stderr
    assert "batchnorm.folded is 1" in bench.stderr
    made = {path.name for path in (work / "convbn-report").iterdir()}
    reports = {"benchmark.json", "comment.md", "gates.xml", "report.html", "result.json"}
    assert made == {"fuse.json", *reports}
    suite = ElementTree.parse(work / "convbn-report" / "gates.xml").getroot()[0]  # noqa: S314 - our own
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("2", "1")
    summary = (work / "summary.md").read_text()
    assert summary.startswith("before\n### ")
    assert "✗ gates 1 of 2" in summary


def write_plan(work: Path) -> None:
    text = 'output = "../out"\n[[models]]\npath = "*.onnx"\n[[targets]]\nkind = "onnx"\n'
    (work / "plans").mkdir()
    (work / "my model.onnx").rename(work / "plans" / "my model.onnx")
    (work / "plans" / "plan.toml").write_text(text)


def test_an_action_without_a_model_or_a_plan_says_so(work: Path) -> None:
    (said,) = steps_of_the_action(work)
    assert said.returncode == 2
    assert said.stderr == "convbn: give the action a model or a plan\n"


@pytest.mark.slow
def test_the_action_does_a_plan_and_the_next_job_what_changed(work: Path) -> None:
    write_plan(work)
    for status in ("done", "cached"):
        (step,) = steps_of_the_action(work, plan="plans/plan.toml", options="--workers\n1\n")
        assert step.returncode == 0, step.stderr
        result = json.loads((work / "convbn-report" / "result.json").read_text())
        assert {one["status"] for one in result["steps"]} == {status}
    assert not [
        node for node in onnx.load(work / "out" / "my model.onnx").graph.node if "Norm" in node.op_type
    ]
    assert (work / ".convbn-store" / "entries").is_dir()
    made = {path.name for path in (work / "convbn-report").iterdir()}
    assert made == {"result.json", "report.html", "comment.md", "steps.xml"}
    assert (work / "summary.md").read_text().count("### ") == 2
    (work / "plans" / "bad.onnx").write_bytes(b"no model")
    (step,) = steps_of_the_action(work, plan="plans/plan.toml")
    assert step.returncode == 3
    suite = ElementTree.parse(work / "convbn-report" / "steps.xml").getroot()[0]  # noqa: S314 - our own
    assert suite.attrib["failures"] == "1"


@pytest.mark.slow
def test_the_job_of_gitlab_does_a_plan(work: Path) -> None:
    write_plan(work)
    job = loaded("examples/ci/gitlab.yml")["convbn-plan"]
    script = [line for line in job["script"] if "pip install" not in line]
    variables = job["variables"] | {"PLAN": "plans/plan.toml"}
    done = ran("\n".join(script), work, variables)
    assert done.returncode == 0, done.stderr
    assert (work / job["artifacts"]["reports"]["junit"]).exists()
    assert (work / "out" / "my model.onnx").exists()
    for path in job["cache"]["paths"]:
        assert (work / path).is_dir()
