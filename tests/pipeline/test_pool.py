"""Steps in real processes: their order, what a failure costs, and what is left of a run that was stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.pipeline.outcome import counts, exit_code
from convbn.pipeline.runners.pool import Event, Ran, run_steps
from convbn.pipeline.runners.workers import LocalRunner, _Worker
from convbn.pipeline.step import Place, Step


def step(name: str, work: str, /, *needs: Step, memory: int = 1, alone: bool = False, **options: Any) -> Step:
    return Step(
        name,
        "test",
        name,
        f"support.works:{work}",
        options,
        needs=needs,
        memory=memory,
        place=Place(alone=alone),
    )


def note(folder: Path, name: str, /, *needs: Step, seconds: float = 0.0, **facts: Any) -> Step:
    return step(name, "note", *needs, folder=str(folder), name=name, seconds=seconds, **facts)


def run(steps: list[Step], **options: Any) -> Ran:
    with LocalRunner(2, **options) as runner:
        return run_steps(steps, runner)


def span(folder: Path, name: str) -> tuple[float, float]:
    begun, ended = (float((folder / f"{name}.{when}").read_text().split()[0]) for when in ("begun", "ended"))
    return begun, ended


def test_a_step_waits_for_what_it_needs(tmp_path: Path) -> None:
    first, second = (note(tmp_path, name, seconds=0.1) for name in "ab")
    third = note(tmp_path, "c", first, second)
    ran = run([third, first, second])
    assert [(outcome.name, outcome.status) for outcome in ran.outcomes] == [
        ("c", "done"),
        ("a", "done"),
        ("b", "done"),
    ]
    assert span(tmp_path, "c")[0] >= max(span(tmp_path, name)[1] for name in "ab")
    assert ran.stopped is None


def test_workers_do_many_steps_and_imports_are_paid_once() -> None:
    ran = run([step(str(number), "threads") for number in range(8)])
    assert len({outcome.report["pid"] for outcome in ran.outcomes if outcome.report}) <= 2


def test_a_failure_costs_only_what_needs_it(tmp_path: Path) -> None:
    bad, worse = step("bad", "refuse"), step("worse", "break_down")
    after = note(tmp_path, "after", bad)
    further = note(tmp_path, "further", after)
    good = note(tmp_path, "good")
    ran = run([bad, worse, after, further, good])
    outcomes = {outcome.name: outcome for outcome in ran.outcomes}
    assert outcomes["bad"].error == "x.onnx: is no model; give another"
    assert outcomes["bad"].exit_code == 3
    assert outcomes["worse"].error == "internal error: ValueError: nobody thought of this"
    assert outcomes["after"].error == "it needs bad, which failed"
    assert outcomes["further"].error == "it needs after, which was cancelled"
    assert outcomes["good"].succeeded
    assert counts(ran.outcomes) == {"done": 1, "cached": 0, "failed": 2, "cancelled": 2}
    assert exit_code(ran.outcomes) == 70
    assert not (tmp_path / "after.begun").exists()


def test_a_worker_that_dies_costs_only_its_step(tmp_path: Path) -> None:
    """Once: the step is tried again. Twice: it fails, with what the process said last; the others are done."""
    once = step("once", "die", folder=str(tmp_path / "1"), times=1)
    twice = step("twice", "die", folder=str(tmp_path / "2"), times=2)
    for number in "12":
        (tmp_path / number).mkdir()
    others = [note(tmp_path, str(number), seconds=0.05) for number in range(6)]
    outcomes = run([*others[:3], once, twice, *others[3:]]).outcomes
    assert [outcome.status for outcome in outcomes] == ["done"] * 4 + ["failed"] + ["done"] * 3
    assert outcomes[4].error is not None
    assert outcomes[4].error.startswith("its process was killed by SIGKILL: farewell; too little memory")


def test_no_more_runs_than_fits_into_memory(tmp_path: Path) -> None:
    """One that is larger than everything runs by itself."""
    steps = [note(tmp_path, name, seconds=0.2, memory=600) for name in "abc"]
    steps.append(note(tmp_path, "large", seconds=0.1, memory=5000))
    assert counts(run(steps, memory=1000).outcomes)["done"] == 4
    spans = sorted(span(tmp_path, name) for name in ("a", "b", "c", "large"))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_what_must_be_alone_shares_the_machine_with_nothing(tmp_path: Path) -> None:
    lone = [note(tmp_path, f"lone{number}", seconds=0.1, alone=True) for number in range(2)]
    shared = [note(tmp_path, f"shared{number}", seconds=0.1) for number in range(4)]
    run([lone[0], *shared, lone[1]])
    spans = {path.stem: span(tmp_path, path.stem) for path in tmp_path.glob("*.begun")}
    for one in ("lone0", "lone1"):
        for name, (begun, ended) in spans.items():
            assert name == one or ended <= spans[one][0] or begun >= spans[one][1], (one, name)


def test_what_is_alone_has_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shared, lone = run([step("shared", "threads"), step("lone", "threads", alone=True)]).outcomes
    assert shared.report is not None
    assert shared.report["OMP_NUM_THREADS"] is not None
    assert lone.report is not None
    assert lone.report["OMP_NUM_THREADS"] is None


def test_what_is_known_is_not_done_again(tmp_path: Path) -> None:
    from convbn.pipeline.outcome import Outcome

    first = note(tmp_path, "a")
    second = note(tmp_path, "b", first)

    def known(asked: Step) -> Outcome | None:
        return Outcome(asked.name, asked.kind, asked.model, "cached") if asked is first else None

    with LocalRunner(1) as runner:
        ran = run_steps([first, second], runner, known=known)
    assert [outcome.status for outcome in ran.outcomes] == ["cached", "done"]
    assert not (tmp_path / "a.begun").exists()


def test_every_start_and_end_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    def listen(event: Event) -> None:
        if event.step is not None:
            told.append((event.name, event.step.name))

    first = note(tmp_path, "a")
    with LocalRunner(1) as runner:
        run_steps([first, note(tmp_path, "b", first)], runner, on_event=listen)
    assert told == [("started", "a"), ("finished", "a"), ("started", "b"), ("finished", "b")]


@pytest.mark.parametrize("moment", ["answered", "taken"])
def test_a_worker_is_ended_wherever_a_signal_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Also where it is neither idle nor busy: while its answer is read, or just before it gets a step."""

    def stop(*_: object) -> None:
        raise SystemExit(143)

    first, second = note(tmp_path, "a"), note(tmp_path, "b")
    with LocalRunner(1) as runner:
        if moment == "answered":
            monkeypatch.setattr(_Worker, "answer", stop)
            ran = run_steps([first], runner)
        else:
            run_steps([first], runner)
            monkeypatch.setattr(_Worker, "__hash__", stop)  # as it is noted which step it does
            ran = run_steps([second], runner)
            monkeypatch.undo()
        assert isinstance(ran.stopped, SystemExit)
        assert multiprocessing.active_children() == []


_RUN = """
import signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from convbn.pipeline.outcome import counts
from convbn.pipeline.runners.pool import run_steps
from convbn.pipeline.step import Step
from convbn.pipeline.runners.workers import LocalRunner

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    steps = [
        Step(name, "test", name, "support.works:note", {{"folder": {folder!r}, "name": name, "seconds": seconds}})
        for name, seconds in (("short", 0), ("long", 60), ("never", 60), ("nor", 0))
    ]
    with LocalRunner(2) as runner:
        ran = run_steps(steps, runner)
    print(type(ran.stopped).__name__, [outcome.status for outcome in ran.outcomes])
"""


@pytest.fixture
def parent(tmp_path: Path) -> subprocess.Popen[str]:
    """A process whose workers are at work: one step is done, two run, one has not begun."""
    program = tmp_path / "program.py"
    program.write_text(_RUN.format(path=sys.path, folder=str(tmp_path)))
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    while not all((tmp_path / f"{name}.begun").exists() for name in ("short", "long", "never")):
        assert process.poll() is None
        time.sleep(0.01)
    return process


def gone(tmp_path: Path) -> bool:
    """Whether no worker lives any more."""
    pids = [int(path.read_text().split()[1]) for path in tmp_path.glob("*.begun")]
    return not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_what_runs_and_keeps_what_is_done(
    parent: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    parent.send_signal(number)
    said, _ = parent.communicate(timeout=60)
    assert parent.returncode == 0
    stopped = {signal.SIGINT: "KeyboardInterrupt", signal.SIGTERM: "SystemExit"}[number]
    assert said == f"{stopped} ['done', 'cancelled', 'cancelled', 'cancelled']\n"
    assert gone(tmp_path)


def test_workers_die_with_a_parent_that_is_killed(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    parent.kill()
    parent.communicate(timeout=60)
    for _ in range(1000):
        if gone(tmp_path):
            break
        time.sleep(0.01)
    assert gone(tmp_path)
    assert not (tmp_path / "long.ended").exists()


def test_a_verb_is_a_step(tmp_path: Path) -> None:
    """Its JSON, its file, and for one that fails the sentence and the exit code of the command line."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    path = tmp_path / "a.onnx"
    onnx.save(
        model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {"w": random(6, 3, 3, 3), **batchnorm_parameters(6)}), path
    )
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    steps = []
    for name in ("a", "bad"):
        arguments = ["fuse", str(tmp_path / f"{name}.onnx"), "-o", str(tmp_path / f"{name}.out.onnx")]
        options = {"arguments": arguments, "outputs": arguments[-1:]}
        steps.append(Step(name, "fuse", name, "convbn.pipeline.works:verb", options))
    good, bad = run(steps).outcomes
    assert good.report is not None
    assert good.report["batchnorm"] == {"before": 1, "after": 0}
    assert [(output.path, output.bytes) for output in good.outputs] == [
        (str(tmp_path / "a.out.onnx"), os.path.getsize(tmp_path / "a.out.onnx"))
    ]
    assert bad.exit_code == 3
    assert bad.error is not None
    assert bad.error.startswith(str(tmp_path / "bad.onnx"))
    assert not bad.error.startswith("convbn")
