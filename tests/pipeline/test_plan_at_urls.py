"""A plan whose models, results and store are at URLs, in real processes; a store there is whole or counts as none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from support.guarded import PASSWORD, register
from support.plans import run, save_network, statuses, whole, write_plan

from convbn.cli import main
from convbn.errors import FileAccessError
from convbn.export.loading import remote
from convbn.pipeline.remote_store import RemoteStore, opened

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVBN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan_at(folder: Path, url: str, **places: str) -> None:
    """A plan of all models below a URL; its report lies beside it."""
    places = {"output": f"{url}/out", "store": f"{url}/store"} | places
    told = "".join(f'{key} = "{place}"\n' for key, place in places.items())
    text = f'{told}[[models]]\npath = "{url}/models/**/*.onnx"\n[[targets]]\nkind = "onnx"\n'
    (folder / "plan.toml").write_text(
        f'{text}[reports]\njson = "run.json"\nhtml = "{places["output"]}/run.html"\n'
    )


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A folder that is used through URLs alone; one of its models keeps its weights in a file of their own."""
    for seed, name in enumerate(("a", "sub folder/b")):
        save_network(tmp_path / "bucket" / "models" / f"{name}.onnx", seed=seed, width=64)
    path = tmp_path / "bucket" / "models" / "a.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="a.bin", size_threshold=0)
    (tmp_path / "here").mkdir()
    plan_at(tmp_path / "here", f"file://{tmp_path / 'bucket'}")
    return tmp_path / "bucket"


def entries(bucket: Path) -> list[Path]:
    return sorted((bucket / "store" / "entries").glob("*/*.json"))


def models_in(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in whole(folder).items() if not name.endswith(".html")}


def test_everything_at_urls_is_the_same_as_here(bucket: Path, tmp_path: Path, cache: Path) -> None:
    here = tmp_path / "here"
    run(here, "run", "plan.toml")
    assert set(statuses(here).values()) == {"done"}
    shutil.copytree(bucket / "models", tmp_path / "local" / "models")
    write_plan(
        tmp_path / "local",
        text='output = "out"\n[[models]]\npath = "models/**/*.onnx"\n[[targets]]\nkind="onnx"\n',
    )
    run(tmp_path / "local", "run", "plan.toml")
    delivered = models_in(bucket / "out")
    assert delivered == models_in(tmp_path / "local" / "out")
    assert any(name.startswith("a.") and name.endswith(".data") for name in delivered)
    assert "b.onnx" in str(sorted(delivered))
    assert "<table" in (bucket / "out" / "run.html").read_text()
    shutil.rmtree(cache)  # another machine
    run(here, "run", "plan.toml")
    assert set(statuses(here).values()) == {"cached"}
    assert len(entries(bucket)) == 4


def test_another_machine_replaces_what_a_run_of_the_plan_delivered(
    bucket: Path, tmp_path: Path, cache: Path
) -> None:
    here = tmp_path / "here"
    run(here, "run", "plan.toml")
    before = models_in(bucket / "out")
    shutil.rmtree(cache)
    save_network(bucket / "models" / "sub folder" / "b.onnx", seed=7)
    _, said, _ = run(here, "run", "plan.toml", "--list")
    assert "sub folder/b/fold   changed: the model" in said
    run(here, "run", "plan.toml")
    assert {name for name, status in statuses(here).items() if status == "done"} == {
        "sub folder/b/fold",
        "sub folder/b/prove",
    }
    after = models_in(bucket / "out")
    assert {name for name in after if after[name] != before[name]} == {"sub folder/b.onnx"}
    (bucket / "out" / "sub folder" / "b.onnx").write_bytes(b"mine")
    save_network(bucket / "models" / "sub folder" / "b.onnx", seed=8)
    run(here, "run", "plan.toml", code=5)
    assert (bucket / "out" / "sub folder" / "b.onnx").read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["object", "manifest", "missing", "elsewhere"])
def test_a_poisoned_store(bucket: Path, tmp_path: Path, cache: Path, how: str) -> None:
    """What does not match its hash is made again, and put right there; no name leads out of the store."""
    here = tmp_path / "here"
    run(here, "run", "plan.toml")
    before = models_in(bucket / "out")
    for path in entries(bucket):
        manifest = json.loads(path.read_text())
        if how == "manifest":
            path.write_bytes(path.read_bytes()[:-9])
        elif how == "elsewhere":
            from convbn.pipeline.store import _digest

            manifest["files"] = {f"../../../../{name}": facts for name, facts in manifest["files"].items()}
            del manifest["sha256"]
            path.write_text(json.dumps(manifest | {"sha256": _digest(manifest)}))
    for path in (bucket / "store" / "objects").glob("*/*"):
        if how == "missing":
            path.unlink()
        elif how == "object":
            path.write_bytes(b"x" * path.stat().st_size)
    shutil.rmtree(cache)
    shutil.rmtree(bucket / "out")
    run(here, "run", "plan.toml")
    assert models_in(bucket / "out") == before
    assert "done" in statuses(here).values()
    shutil.rmtree(cache)
    run(here, "run", "plan.toml")
    assert set(statuses(here).values()) == {"cached"}


def test_what_was_not_brought_there_is_brought_by_the_next_run(bucket: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    run(here, "run", "plan.toml")
    shutil.rmtree(bucket / "store")
    run(here, "run", "plan.toml")
    assert set(statuses(here).values()) == {"cached"}
    assert len(entries(bucket)) == 4


def test_a_plan_beside_its_models_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All at one file system that workers do not see: they use copies of the same hash; this process delivers."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    save_network(tmp_path / "a.onnx", width=64)
    onnx.save(
        onnx.load(tmp_path / "a.onnx"),
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="a.bin",
        size_threshold=0,
    )
    text = 'output = "out"\n[[models]]\npath = "nets"\n[[targets]]\nkind = "onnx"\n'
    text += f'[reports]\njson = "file://{tmp_path}/run.json"\n'
    (tmp_path / "plan.toml").write_text(text)
    for name in ("a.onnx", "a.bin"):
        remote.put(tmp_path / name, f"memory://nightly/nets/{name}")
    remote.put(tmp_path / "plan.toml", "memory://nightly/plan.toml")
    plan = "memory://nightly/plan.toml"
    assert main(["run", plan]) == 0, capsys.readouterr().err
    assert set(statuses(tmp_path).values()) == {"done"}
    names = [name for name in system.find("/nightly") if "/store" not in name]
    assert "/nightly/out/a.onnx" in names
    assert sum("/nightly/.convbn-store/entries/" in name for name in names) == 2
    assert main(["run", plan]) == 0
    assert set(statuses(tmp_path).values()) == {"cached"}


@pytest.fixture
def memory(tmp_path: Path) -> RemoteStore:
    fsspec.filesystem("memory").store.clear()
    store = opened("memory://kept")
    assert isinstance(store, RemoteStore)
    return store


KEY = "ab" * 32


def publish(store: RemoteStore, content: bytes = b"weights") -> None:
    with store.lock(KEY) as held, store.making(KEY) as folder:
        assert held
        (folder / "net.onnx").write_bytes(content)
        store.publish(KEY, kind="fold", name="net/fold", report={"kept": 1}, seconds=2.0)


def test_an_entry_is_there_once_its_manifest_is(memory: RemoteStore, tmp_path: Path) -> None:
    publish(memory)
    system = fsspec.filesystem("memory")
    shutil.rmtree(memory.root)
    assert memory.find(KEY) is None
    memory.prepare([KEY, "cd" * 32])
    looked = memory.look(KEY)
    assert looked is not None
    assert looked.report == {"kept": 1}
    assert not looked.path("net.onnx").exists(), "the files are fetched when they are needed"
    memory.bring(KEY)
    found = memory.find(KEY)
    assert found is not None
    assert found.path("net.onnx").read_bytes() == b"weights"
    shutil.rmtree(memory.root)
    system.rm_file(f"/kept/entries/ab/{KEY}.json")
    memory.bring(KEY)
    assert memory.find(KEY) is None


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = opened(f"file://{tmp_path}/file/store")
    with pytest.raises(FileAccessError, match="cannot be written") as caught:
        store.check_writable()
    assert str(caught.value).startswith(f"file://{tmp_path}/file/store/store.json: ")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["in the URL", "as a storage option"])
def test_credentials_appear_nowhere(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """In no message, report, record, result or store, whether it goes well or not."""
    (tmp_path / "server").mkdir()
    (tmp_path / "here").mkdir()
    for name, value in register(tmp_path / "server").items():
        monkeypatch.setenv(name, value)
    user = f"me:{PASSWORD}@" if given == "in the URL" else ""
    if not user:
        monkeypatch.setenv("FSSPEC_GUARDED_PASSWORD", PASSWORD)
    save_network(tmp_path / "server" / "root" / "models" / "a.onnx")
    (tmp_path / "server" / "root" / "models" / "bad.onnx").write_bytes(b"no model")
    here = tmp_path / "here"
    plan_at(here, f"guarded://{user}host")
    said = "".join(map(str, run(here, "run", "plan.toml", "--debug", "--junit", "run.xml", code=3)))
    assert "bad.onnx" in said
    assert statuses(here)["a/prove"] == "done"
    said += "".join(map(str, run(here, "run", "plan.toml", "--list", "--json", "list.json")))
    text = (here / "plan.toml").read_text()
    (here / "plan.toml").unlink()
    for wrong in ("wrong" + PASSWORD, PASSWORD):
        (here / "wrong.toml").write_text(text.replace(PASSWORD, wrong).replace("models/", "nothing/"))
        monkeypatch.setenv("FSSPEC_GUARDED_PASSWORD", wrong)
        if wrong != PASSWORD:
            said += "".join(map(str, run(here, "run", "wrong.toml", "--debug", code=5)))
            assert "cannot be read: PermissionError" in said
        else:
            said += "".join(map(str, run(here, "run", "wrong.toml", "--debug", code=3)))
            assert "no file is guarded://host/nothing/**/*.onnx" in said
        (here / "wrong.toml").unlink()
    assert PASSWORD not in said
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path
