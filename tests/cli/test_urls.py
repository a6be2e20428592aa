"""Models at URLs: fetched once, checked by hash, their weights with them; results are put there whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.graphs import operators

from convbn.cli import main
from convbn.errors import BadInputError, FileAccessError, NotSupportedError
from convbn.export.loading import remote

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVBN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket() -> object:
    """An empty store in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


def put(model: onnx.ModelProto, folder: Path, *, beside: str | None = None) -> None:
    """Write a model into a folder and from there into the store in memory."""
    folder.mkdir()
    how = {"save_as_external_data": True, "location": beside, "size_threshold": 0} if beside else {}
    onnx.save(model, folder / "model.onnx", **how)
    for file in folder.iterdir():
        fsspec.filesystem("memory").put_file(str(file), f"/models/{file.name}")


def network(value: float = 2.0) -> onnx.ModelProto:
    parameters = {name: np.full(64, value, np.float32) for name in ("gamma", "beta", "mean", "var")}
    weights = {"w": np.ones((64, 1, 3, 3), np.float32), **parameters}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("BatchNormalization", ["y", "gamma", "beta", "mean", "var"], ["z"]),
    ]
    info = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", info, [1, 1, 5, 5])],
        [helper.make_tensor_value_info("z", info, [1, 64, 3, 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_folded_from_url_to_url(bucket: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(network(), tmp_path / "here", beside="weights.bin")
    source, target = "memory://models/model.onnx", "memory://out/deep/folded.onnx"
    assert main(["fuse", source, "-o", target]) == 0
    assert f"written: {target}" in capsys.readouterr().out
    with fsspec.open(target) as file:
        folded = onnx.load(file, load_external_data=False)
    assert operators(folded) == ["Conv"]
    beside = [name for name in fsspec.filesystem("memory").ls("/out/deep", detail=False) if "data" in name]
    assert len(beside) == 1, "the weights go with it"
    assert main(["fuse", source, "-o", target]) == 5
    assert f"{target}: already exists" in capsys.readouterr().err
    assert main(["fuse", source, "-o", target, "--force", "--quiet"]) == 0


def test_fetched_once_and_again_when_it_changed(bucket: object, tmp_path: Path) -> None:
    put(network(), tmp_path / "one")
    first = remote.fetch("memory://models/model.onnx")
    before = first.stat().st_ino
    assert remote.fetch("memory://models/model.onnx").stat().st_ino == before
    put(network(3.0), tmp_path / "two")
    again = remote.fetch("memory://models/model.onnx")
    assert again == first
    assert again.read_bytes() == (tmp_path / "two" / "model.onnx").read_bytes()


def test_a_copy_that_was_changed_is_fetched_anew(bucket: object, tmp_path: Path) -> None:
    put(network(), tmp_path / "one")
    copy = remote.fetch("memory://models/model.onnx")
    copy.write_bytes(b"poisoned")
    assert (
        remote.fetch("memory://models/model.onnx").read_bytes() == (tmp_path / "one/model.onnx").read_bytes()
    )


def test_weights_outside_of_the_folder_are_refused(bucket: object, tmp_path: Path) -> None:
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    with fsspec.open("memory://models/model.onnx", "wb") as file:
        file.write(model.SerializeToString())
    with pytest.raises(BadInputError, match=r"outside of its folder: \.\./secret"):
        remote.fetch("memory://models/model.onnx")


def test_errors_name_the_url_without_its_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileAccessError, match=r"memory://models/none\.onnx: does not exist"):
        remote.fetch("memory://models/none.onnx")
    assert remote.shown("s3://me:secret@bucket/m.onnx?token=secret") == "s3://bucket/m.onnx"
    with pytest.raises((NotSupportedError, FileAccessError)) as caught:
        remote.fetch("nonesuch://me:secret@bucket/m.onnx")
    assert "secret" not in str(caught.value)
    assert main(["inspect", "memory://models/none.onnx"]) == 5
    assert "memory://models/none.onnx: does not exist" in capsys.readouterr().err


def test_a_folder_and_a_pattern_at_a_url(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "models" / name).mkdir(parents=True)
        onnx.save(network(), tmp_path / "models" / name / "model.onnx")
    url, out = (tmp_path / "models").as_uri(), (tmp_path / "out").as_uri()
    assert main(["fuse", url, "-o", out, "--quiet"]) == 0
    assert operators(onnx.load(tmp_path / "out" / "b" / "model.onnx")) == ["Conv"]
    assert sorted(remote.listed(f"{url}/*/model.onnx") or ()) == ["a/model.onnx", "b/model.onnx"]
    assert remote.listed(f"{url}/a/model.onnx") is None
