"""Names of a hub: from the cache, offline; nothing here reaches a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convbn.errors import BadInputError, FileAccessError, NotSupportedError, UsageError
from convbn.export.checkpoints.architectures import build_module
from convbn.export.checkpoints.hub import fetch, fetch_weights

torch = pytest.importorskip("torch")
hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
errors = pytest.importorskip("huggingface_hub.errors")
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "pretrained_cfg": {"tag": "own"},
    "model_args": {"in_chans": 1},
}


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def cached(tmp_path: Path, files: dict[str, bytes]) -> Path:
    """A repository as huggingface_hub keeps it."""
    folder = tmp_path / "cache" / "models--someone--net"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name, data in files.items():
        (snapshot / name).write_bytes(data)
    return snapshot


def test_an_architecture_from_the_cache(tmp_path, working_torchvision):
    pytest.importorskip("timm")
    snapshot = cached(tmp_path, {"config.json": json.dumps(CONFIG).encode()})
    module = build_module("hf-hub:someone/net")
    assert module.fc.out_features == 3
    assert module.conv1.in_channels == 1
    assert build_module("hf-hub:someone/net@main", {"num_classes": 5}).fc.out_features == 5
    assert build_module(f"local-dir:{snapshot}").fc.out_features == 3
    with pytest.raises(UsageError, match="would fetch weights"):
        build_module("hf-hub:someone/net", {"pretrained": True})


def test_a_config_that_names_code_runs_none(tmp_path, working_torchvision, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n")
    cached(tmp_path, {"config.json": json.dumps({"architecture": "evil:net"}).encode()})
    with pytest.raises(BadInputError, match="cannot be built"):
        build_module("hf-hub:someone/net")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"x"', b"{}"])
def test_a_broken_config(text, tmp_path, working_torchvision):
    pytest.importorskip("timm")
    cached(tmp_path, {"config.json": text})
    with pytest.raises(BadInputError, match="cannot be built") as error:
        build_module("hf-hub:someone/net")
    assert "\n" not in str(error.value)


def test_without_cache_and_network(working_torchvision):
    pytest.importorskip("timm")
    message = r"hf-hub:someone/net: config\.json is not in the cache and cannot be fetched \(Offline.*HF_HOME"
    with pytest.raises(FileAccessError, match=message) as error:
        build_module("hf-hub:someone/net")
    assert "\n" not in str(error.value)
    with pytest.raises(FileAccessError, match=r"pytorch_model\.bin is not in the cache"):
        fetch_weights("someone/net")


def test_safetensors_come_first(tmp_path):
    snapshot = cached(tmp_path, {"model.safetensors": b"", "pytorch_model.bin": b""})
    assert fetch_weights("someone/net") == snapshot / "model.safetensors"
    (snapshot / "model.safetensors").unlink()
    assert fetch_weights("someone/net") == snapshot / "pytorch_model.bin"


@pytest.mark.parametrize("name", ["a/b/c", "a b", "..", "a/..", "", "/etc/passwd"])
def test_what_is_no_name(name):
    with pytest.raises(UsageError, match="ORG/NAME"):
        fetch(name, "config.json")


def test_a_network_that_fails_is_no_reason_to_take_a_pickle(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def refuse(repo, name, **options):
        asked.append(name)
        raise errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(FileAccessError, match="cannot be fetched"):
        fetch_weights("someone/net")
    assert set(asked) == {"model.safetensors"}


def test_no_folder(tmp_path, working_torchvision):
    pytest.importorskip("timm")
    with pytest.raises(FileAccessError, match=r"has no config\.json"):
        build_module(f"local-dir:{tmp_path}")


def test_missing_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(NotSupportedError, match="pip install huggingface_hub"):
        fetch("someone/net", "config.json")
