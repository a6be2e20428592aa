"""Two runs on one machine: what measures shares it with no step of the other, and a killed one holds nobody up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.plans import save_network, start

from convbn.errors import FileAccessError
from convbn.pipeline.runners.machine import Machine

_RUN = """
import sys
sys.path[:0] = {path!r}
from convbn.pipeline.runners.pool import run_steps
from convbn.pipeline.runners.workers import LocalRunner
from convbn.pipeline.step import Place, Step

if __name__ == "__main__":
    steps = [
        Step(name, "test", name, "support.works:note", {{"folder": {folder!r}, "name": name, "seconds": seconds}},
             place=Place(alone=name.startswith("lone")))
        for name, seconds in {steps!r}
    ]
    with LocalRunner(2) as runner:
        ran = run_steps(steps, runner)
    print([outcome.status for outcome in ran.outcomes])
"""

QUICK = ("--runtime", "onnxruntime-cpu@off", "--budget", "0.2", "--no-memory")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Locks of these tests alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def begun(tmp_path: Path, number: int, steps: list[tuple[str, float]]) -> subprocess.Popen[str]:
    """A run of its own."""
    program = tmp_path / f"program{number}.py"
    program.write_text(_RUN.format(path=sys.path, folder=str(tmp_path), steps=steps))
    return subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)


def spans(tmp_path: Path) -> dict[str, tuple[float, float]]:
    found = {}
    for path in tmp_path.glob("*.begun"):
        both = (path, path.with_suffix(".ended"))
        first, last = (float(one.read_text().split()[0]) for one in both)
        found[path.stem] = (first, last)
    return found


@pytest.mark.slow
def test_what_measures_shares_the_machine_with_no_step_of_another_run(tmp_path: Path) -> None:
    several = [(f"shared{number}", 0.3) for number in range(8)]
    runs = [
        begun(tmp_path, 1, [("lone1", 0.3), ("early", 0.3), ("lone2", 0.3)]),
        begun(tmp_path, 2, [*several, ("lone3", 0.3)]),
    ]
    for run in runs:
        said, _ = run.communicate(timeout=300)
        assert "failed" not in said
        assert run.returncode == 0
    found = spans(tmp_path)
    assert len(found) == 12
    for one in ("lone1", "lone2", "lone3"):
        for name, (first, last) in found.items():
            assert name == one or last <= found[one][0] or first >= found[one][1], (one, name)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_measures(tmp_path: Path) -> None:
    first = begun(tmp_path, 1, [("lone", 600.0)])
    while not (tmp_path / "lone.begun").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = begun(tmp_path, 2, [("shared", 0.0), ("lone2", 0.0)])
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    said, _ = second.communicate(timeout=120)
    assert said == "['done', 'done']\n"


def test_waiting_is_said(tmp_path: Path) -> None:
    save_network(tmp_path / "models" / "a.onnx")
    with Machine() as machine:
        assert machine.enter(alone=True)
        process = start(tmp_path, "fuse", "models", "-o", "out")
        assert process.stderr is not None
        assert process.stderr.readline() == "convbn: waiting: another run measures on this machine\n"
        assert not (tmp_path / "out" / "a.onnx").exists()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / "out" / "a.onnx").exists()


@pytest.mark.parametrize(
    ("alone", "waits_for"),
    [
        (True, "another run measures on this machine"),
        (False, "to measure, until other runs on this machine end the steps that they have begun"),
    ],
)
def test_a_bench_by_itself_waits_as_one_of_a_plan_does(tmp_path: Path, alone: bool, waits_for: str) -> None:
    save_network(tmp_path / "a.onnx")
    with Machine() as machine:
        assert machine.enter(alone=alone)
        process = start(tmp_path, "bench", "a.onnx", *QUICK, "--json", "a.json")
        assert process.stderr is not None
        assert process.stderr.readline() == f"convbn: waiting: {waits_for}\n"
        assert not (tmp_path / "a.json").exists()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / "a.json").exists()


def test_a_bench_by_itself_does_not_wait_for_ever_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convbn.cli import main

    monkeypatch.setattr("convbn.commands.steps.measuring._PATIENCE", 0.1)
    save_network(tmp_path / "a.onnx")
    with Machine() as machine:
        assert machine.enter(alone=True)
        assert main(["bench", str(tmp_path / "a.onnx"), *QUICK, "--json", str(tmp_path / "a.json")]) == 0
        assert not Machine().enter(alone=False), "it has taken nothing away"
    (fact,) = json.loads((tmp_path / "a.json").read_text())["extra"]
    assert fact["value"].startswith("another run of convbn on this machine")


@pytest.mark.slow
def test_steps_and_benches_wait_for_a_bench_by_itself(tmp_path: Path) -> None:
    save_network(tmp_path / "a.onnx")
    process = start(tmp_path, "bench", "a.onnx", "--runtime", "onnxruntime-cpu", "--budget", "600")
    with Machine() as machine:
        while machine.enter(alone=False):
            machine.leave()
            assert process.poll() is None
        assert machine.waiting == "another run measures on this machine"
        assert not machine.enter(alone=True)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert machine.enter(alone=True)


def test_turns() -> None:
    with Machine() as one, Machine() as two, Machine() as three:
        assert one.enter(alone=False)
        assert two.enter(alone=False)
        assert not three.enter(alone=True), "both are at work"
        assert (
            three.waiting == "to measure, until other runs on this machine end the steps that they have begun"
        )
        assert not one.enter(alone=False), "who waits is not overtaken"
        one.leave()
        assert not three.enter(alone=True)
        two.leave()
        assert three.enter(alone=True)
        assert three.waiting is None
        assert not two.enter(alone=True)
        assert two.waiting == "another run measures on this machine"
        three.leave()
        assert two.enter(alone=True)


def test_what_an_ended_run_leaves_behind_is_taken_away(temporary: Path) -> None:
    with Machine() as machine:
        folder = next(temporary.glob("convbn-*"))
        (folder / "steps-1-dead.lock").touch()
        assert machine.enter(alone=True)
        assert not (folder / "steps-1-dead.lock").exists()


def test_a_folder_of_somebody_else_is_refused(temporary: Path) -> None:
    Machine().close()
    folder = next(temporary.glob("convbn-*"))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.symlink_to(temporary)
    with pytest.raises(FileAccessError, match="is not a folder of this user; remove it, or set TMPDIR"):
        Machine()
