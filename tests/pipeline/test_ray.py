"""The same plan through Ray's local cluster: the same results, and what its kills cost. Needs the extra ``ray``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.plans import PLAN, run, start, statuses, whole, write_plan

from convbn.pipeline.runners.pool import run_steps
from convbn.pipeline.step import Place, Step

pytest.importorskip("ray", reason="ray is not installed: pip install 'convbn[ray]'")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

NAMES = ("a", "b", "c")
RAY = ("--ray", "local", "--workers", "2")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run in processes of this machine delivers."""
    folder = tmp_path_factory.mktemp("expected")
    write_plan(folder, *NAMES)
    run(folder, "run", "plan.toml")
    return whole(folder / "out")


def test_ray_makes_the_same_and_a_run_here_finds_it_done(tmp_path: Path, expected: dict[str, bytes]) -> None:
    write_plan(tmp_path, *NAMES)
    run(tmp_path, "run", "plan.toml", *RAY)
    assert set(statuses(tmp_path).values()) == {"done"}
    assert whole(tmp_path / "out") == expected
    run(tmp_path, "run", "plan.toml")
    assert set(statuses(tmp_path).values()) == {"cached"}


def ray_workers(parent: int) -> list[int]:
    """Ray's processes that do a step of this run now, as they call themselves."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
            ancestors = _ancestors(int(path.parent.name))
        except OSError:
            continue
        if command.startswith(b"ray::") and b"/" in command and parent in ancestors:
            found.append(int(path.parent.name))
    return found


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_a_ray_worker_that_is_killed(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """Ray tries its step again, and everything is there in the end."""
    write_plan(tmp_path, *NAMES)
    process = start(tmp_path, "run", "plan.toml", *RAY)
    killed: list[int] = []
    while process.poll() is None and not killed:
        killed = ray_workers(process.pid)[:1]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert killed
    assert process.returncode == 0, out + err
    assert whole(tmp_path / "out") == expected


def test_a_ray_run_that_is_stopped(tmp_path: Path, expected: dict[str, bytes]) -> None:
    write_plan(tmp_path, *NAMES)
    process = start(tmp_path, "run", "plan.toml", *RAY)
    while process.poll() is None and not list((tmp_path / ".convbn-store").glob("entries/*/*")):
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "cancelled" in statuses(tmp_path).values()
    run(tmp_path, "run", "plan.toml")
    assert "cached" in statuses(tmp_path).values()
    assert whole(tmp_path / "out") == expected


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a node that sees nothing of the folder ``here``, and has a cache of its own."""
    monkeypatch.setenv(
        "RAY_AUTH_MODE", "disabled"
    )  # or a token that lies about from another cluster is asked for
    (tmp_path / "here").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    session = tempfile.mkdtemp(prefix="ray")  # of a short name, for its sockets
    told = ["start", "--head", "--block", "--num-cpus", "2", "--port", address.partition(":")[2]]
    told += ["--temp-dir", session, "--include-dashboard", "false", "--disable-usage-stats"]
    hidden = 'mount -t tmpfs tmpfs "$1" && echo hidden && shift && exec "$@"'
    command = [sys.executable, "-m", "ray.scripts.scripts", *told]
    with (tmp_path / "node.log").open("wb") as log:
        node = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", hidden, "sh", str(tmp_path / "here"), *command],
            env={**os.environ, "CONVBN_CACHE": str(tmp_path / "cache of the node")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    while node.poll() is None and b"Ray runtime started" not in (tmp_path / "node.log").read_bytes():
        pass
    if node.poll() is not None and b"hidden" not in (tmp_path / "node.log").read_bytes():
        pytest.skip("no folder can be hidden from a process here")
    assert node.poll() is None, (tmp_path / "node.log").read_text()
    yield address
    node.terminate()
    node.wait(60)
    shutil.rmtree(session, ignore_errors=True)


def test_a_cluster_without_a_common_folder(
    tmp_path: Path, elsewhere: str, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models, results and store are at URLs; the plan and this side's copies lie where no node sees them."""
    here, url = tmp_path / "here", f"file://{tmp_path}/bucket"
    write_plan(tmp_path / "bucket", *NAMES)
    places = f'output = "{url}/out"\nstore = "{url}/store"\n'
    text = PLAN.replace('output = "out"', places).replace("models/", f"{url}/models/")
    (here / "plan.toml").write_text(text)
    monkeypatch.setenv("CONVBN_CACHE", str(here / "cache"))
    run(here, "run", "plan.toml", "--ray", elsewhere)
    assert set(statuses(here).values()) == {"done"}
    assert whole(tmp_path / "bucket" / "out") == expected
    made = "stores/*/entries/*/*"
    assert list((tmp_path / "cache of the node").glob(made))
    assert not list((here / "cache").glob(made)), "it was done here"
    run(here, "run", "plan.toml", "--ray", elsewhere)
    assert set(statuses(here).values()) == {"cached"}


def test_resources_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench has the node to itself; what no node has is refused in a sentence."""
    from convbn.pipeline.runners.ray_tasks import RayRunner

    def note(name: str, place: Place) -> Step:
        options = {"folder": str(tmp_path), "name": name, "seconds": 0.3}
        return Step(name, "test", name, "support.works:note", options, place=place)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the works, which are the tests' own
    steps = [note(f"shared{number}", Place()) for number in range(4)]
    steps += [note("lone", Place(alone=True)), note("gpu", Place(gpus=1, accelerator="H100"))]
    with RayRunner("local", 2, retries=0, store=tmp_path / "store") as runner:
        outcomes = {outcome.name: outcome for outcome in run_steps(steps, runner).outcomes}
    assert outcomes["lone"].succeeded, outcomes["lone"].error
    spans = {}
    for path in tmp_path.glob("*.begun"):
        spans[path.stem] = tuple(
            float(path.with_suffix(s).read_text().split()[0]) for s in (".begun", ".ended")
        )
    begun, ended = spans.pop("lone")
    assert len(spans) == 4
    assert all(end <= begun or start >= ended for start, end in spans.values())
    assert outcomes["gpu"].exit_code == 4
    assert "no node of the cluster has GPU 1, accelerator_type:H100" in str(outcomes["gpu"].error)
