"""Kills, full disks, read-only mounts, spoilt entries, two runs: never a wrong or half artefact, always a way on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.plans import PLAN, run, save_network, start, statuses, whole, write_plan

pytestmark = pytest.mark.slow

STORE = ".convbn-store"
NAMES = tuple("abcd")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nothing happens to delivers."""
    folder = tmp_path_factory.mktemp("expected")
    write_plan(folder, *NAMES)
    run(folder, "run", "plan.toml")
    return whole(folder / "out")


def entries(folder: Path) -> list[Path]:
    return sorted((folder / STORE / "entries").glob("*/*"))


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that it has started and that do steps."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == process.pid and b"spawn_main" in command and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_worker_that_is_killed(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """In the middle of its work: its step is tried again, and everything is there in the end."""
    write_plan(tmp_path, *NAMES)
    process = start(tmp_path, "run", "plan.toml", "--workers", "2")
    wait_for(
        lambda: (
            (tmp_path / STORE / "making").is_dir() and list((tmp_path / STORE / "making").glob("[0-9a-f]*"))
        )
    )
    os.kill(workers_of(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert whole(tmp_path / "out") == expected


@pytest.mark.parametrize("after", [0, 5])
def test_a_parent_that_is_killed(tmp_path: Path, expected: dict[str, bytes], after: int) -> None:
    """Its workers end with it; the next run goes on where it stopped."""
    write_plan(tmp_path, *NAMES)
    process = start(tmp_path, "run", "plan.toml", "--workers", "2")
    wait_for(lambda: len(entries(tmp_path)) >= after and workers_of(process))
    pids = workers_of(process)
    process.kill()
    process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    named = {name: content for name, content in whole(tmp_path / "out").items() if "/." not in f"/{name}"}
    assert named.items() <= expected.items()
    there = len(entries(tmp_path))
    run(tmp_path, "run", "plan.toml")
    found = list(statuses(tmp_path).values())
    assert set(found) <= {"done", "cached"}
    assert found.count("done") <= len(found) - there
    assert whole(tmp_path / "out") == expected
    assert list((tmp_path / STORE / "making").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped(tmp_path: Path, expected: dict[str, bytes], number: signal.Signals) -> None:
    """What is done is kept and reported; nothing half-made stays."""
    write_plan(tmp_path, *NAMES)
    process = start(tmp_path, "run", "plan.toml", "--workers", "2")
    wait_for(lambda: len(entries(tmp_path)) >= 2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (0, 128 + number)
    if process.returncode:
        assert set(statuses(tmp_path).values()) <= {"done", "cached", "cancelled"}
        assert "cancelled" in statuses(tmp_path).values()
    assert list((tmp_path / STORE / "making").iterdir()) == []
    run(tmp_path, "run", "plan.toml")
    assert whole(tmp_path / "out") == expected


def test_ctrl_c_on_a_terminal_while_workers_start(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """All processes of the command get it, and one answers."""
    write_plan(tmp_path, *NAMES)
    process = start(tmp_path, "run", "plan.toml", "--workers", "2", start_new_session=True)
    wait_for(lambda: workers_of(process))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "convbn: interrupted\n"
    assert set(statuses(tmp_path).values()) == {"cancelled"}
    run(tmp_path, "run", "plan.toml")
    assert whole(tmp_path / "out") == expected


def test_spoilt_entries_are_found_and_made_again(tmp_path: Path) -> None:
    """Each model's in another way: longer, of the same size, no longer its own, without a file, without a manifest."""
    names = ("longer", "flipped", "foreign", "missing", "empty")
    write_plan(tmp_path, *names)
    run(tmp_path, "run", "plan.toml")
    before = whole(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    for entry in entries(tmp_path):
        manifest = entry / "entry.json"
        how = json.loads(manifest.read_text())["name"].partition("/")[0]
        if how == "empty":
            manifest.write_bytes(b"")
        elif how == "foreign":
            manifest.write_bytes(manifest.read_bytes().replace(b"foreign/", b"another/"))
        for path in (path for path in entry.iterdir() if path != manifest):
            content = bytearray(path.read_bytes())
            if how == "missing":
                path.unlink()
            elif how == "longer":
                path.write_bytes(content + b"more")
            elif how == "flipped":
                content[len(content) // 2] ^= 255
                path.write_bytes(content)
    run(tmp_path, "run", "plan.toml")
    assert {statuses(tmp_path)[f"{name}/fold"] for name in names} == {"done"}
    assert whole(tmp_path / "out") == before
    run(tmp_path, "run", "plan.toml")
    assert set(statuses(tmp_path).values()) == {"cached"}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, as a mount would be."""
    mounted: list[Path] = []

    def make(folder: Path) -> None:
        if os.geteuid() != 0:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(path.stat().st_mode & 0o555)
            mounted.append(folder)
            return
        for options in (["--bind", str(folder)], ["-o", "remount,ro,bind"]):
            done = subprocess.run(
                ["mount", *options, str(folder)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
            mounted.append(folder)

    yield make
    for folder in mounted[:1]:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(folder)], check=True)
        else:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(path.stat().st_mode | 0o700)


def test_a_store_that_is_read_only(tmp_path: Path, read_only: Callable[[Path], None]) -> None:
    """What is in it is used; for what is not, another is asked for before anything starts."""
    write_plan(tmp_path, "a")
    run(tmp_path, "run", "plan.toml")
    read_only(tmp_path / STORE)
    run(tmp_path, "run", "plan.toml")
    assert set(statuses(tmp_path).values()) == {"cached"}
    save_network(tmp_path / "models" / "a.onnx", seed=9)
    _, _, said = run(tmp_path, "run", "plan.toml", code=5)
    assert "the store cannot be written: " in said
    assert "name another folder with --store" in said
    before = whole(tmp_path / "out")
    run(tmp_path, "run", "plan.toml", "--store", "other", "--force")
    assert whole(tmp_path / "out") != before


def test_a_full_disk(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """No file can grow beyond a limit: steps fail in a sentence, nothing is left, and with room the run goes on."""
    write_plan(tmp_path, *NAMES)

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code, said, err = run(tmp_path, "run", "plan.toml", code=None, preexec_fn=little)
    assert code == 5, said + err
    assert "file too large" in said + err
    assert not any(path.suffix == ".onnx" for path in (tmp_path / "out").rglob("*"))
    assert list((tmp_path / STORE / "making").iterdir()) == []
    run(tmp_path, "run", "plan.toml")
    assert whole(tmp_path / "out") == expected


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a little of what is done."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, "size=2m"):
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mounted(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_disk_that_fills_up_while_a_plan_runs(tmp_path: Path, disk: Path) -> None:
    """What was done before is whole; what had no room fails in a sentence; with more room the run goes on."""
    roomy = tmp_path / "roomy"
    roomy.mkdir()
    for seed, name in enumerate(NAMES):
        save_network(tmp_path / "models" / f"{name}.onnx", seed=seed, width=3000)
    for folder in (disk, roomy):
        write_plan(folder, text=PLAN.replace("models/", "../models/"))
    run(roomy, "run", "plan.toml")
    code, said, err = run(disk, "run", "plan.toml", code=None)
    assert code == 5, said + err
    assert "no space left on device" in said + err
    assert "Traceback" not in said + err
    delivered = whole(disk / "out")
    assert delivered.items() < whole(roomy / "out").items()
    assert list((disk / STORE / "making").iterdir()) == []
    assert mounted(disk, "remount,size=20m")
    run(disk, "run", "plan.toml")
    assert set(statuses(disk).values()) <= {"done", "cached"}
    assert whole(disk / "out") == whole(roomy / "out")


def test_a_model_that_changes_while_the_plan_runs(tmp_path: Path) -> None:
    """What was read must be what the key says: the step fails, and the next run takes what is there then."""
    from convbn.pipeline.perform import perform
    from convbn.pipeline.planning.expand import expand
    from convbn.pipeline.planning.hashes import Hashes
    from convbn.pipeline.planning.models import models_of
    from convbn.pipeline.planning.plan import read_plan
    from convbn.pipeline.store import Store

    plan = read_plan(str(write_plan(tmp_path, "a")))
    steps = expand(plan, models_of(plan, Hashes())).steps
    save_network(tmp_path / "models" / "a.onnx", seed=9)
    outcome = perform(steps[0], Store(plan.store))
    assert outcome is not None
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "changed while the plan ran" in outcome.error
    assert entries(tmp_path) == []


def test_two_runs_on_one_store(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """No step is done twice, and both have everything in the end."""
    write_plan(tmp_path, *NAMES)
    text = (tmp_path / "plan.toml").read_text()
    for number in "12":
        told = text.replace('"out"', f'"out{number}"').replace("run.json", f"run{number}.json")
        (tmp_path / f"plan{number}.toml").write_text(told)
    processes = [start(tmp_path, "run", f"plan{number}.toml", "--workers", "2") for number in "12"]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    done = []
    for number in "12":
        (tmp_path / f"run{number}.json").rename(tmp_path / "run.json")
        done.append({name for name, status in statuses(tmp_path).items() if status == "done"})
        assert whole(tmp_path / f"out{number}") == expected
    assert not done[0] & done[1]
    assert len(done[0] | done[1]) == 3 * len(NAMES)
