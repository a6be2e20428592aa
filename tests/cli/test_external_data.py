"""ONNX files whose weights lie beside them, from the command line and from ``fuse_file``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random, relative_error, run

import convbn as package
from convbn import BadInputError, CheckFailedError, FileAccessError, FuseOptions


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """Conv → BatchNorm → ReLU with all weights in ``m.bin``, in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    built = model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {"w": random(64, 3, 3, 3), **batchnorm_parameters(64)})
    onnx.save(built, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    return folder / "m.onnx"


def same(a: Path, b: Path) -> bool:
    feeds = {"x": random(2, 3, 8, 8, seed=7)}
    return relative_error(run(onnx.load(a), feeds), run(onnx.load(b), feeds)) < 1e-5


def names(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[-1] for path in folder.iterdir())


def test_external_in_external_out(convbn: Any, external: Path, tmp_path: Path) -> None:
    result = convbn("fuse", external, "-o", tmp_path / "out.onnx")
    assert result.returncode == 0, result.stderr
    assert "outputs equal" in result.stdout
    assert names(tmp_path) == ["data", "model", "onnx"]
    assert same(external, tmp_path / "out.onnx")
    # The reference is relative, so that the pair can be moved together.
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("out*"):
        path.rename(moved / path.name)
    assert same(external, moved / "out.onnx")
    assert convbn("verify", external, moved / "out.onnx").returncode == 0
    assert "BatchNorm       0      0" in convbn("inspect", moved / "out.onnx").stdout


@pytest.mark.parametrize(
    ("choice", "expected"), [("never", ["model", "onnx"]), ("always", ["data", "model", "onnx"])]
)
def test_the_user_decides(
    convbn: Any, external: Path, tmp_path: Path, choice: str, expected: list[str]
) -> None:
    assert convbn("fuse", external, "-o", "out.onnx", "--external-data", choice).returncode == 0
    assert names(tmp_path) == expected
    assert same(external, tmp_path / "out.onnx")
    assert convbn("fuse", external, "-o", "x.onnx", "--external-data", "maybe").returncode == 2


def test_over_itself(external: Path) -> None:
    before = external.read_bytes(), external.with_name("m.bin").read_bytes()
    with pytest.raises(FileAccessError, match="already exists"):
        package.fuse_file(external, external)
    assert (external.read_bytes(), external.with_name("m.bin").read_bytes()) == before
    report = package.fuse_file(external, external, overwrite=True)
    assert report.batchnorm.after == 0
    assert report.verify["status"] == "equal"
    assert external.with_name("m.bin").read_bytes() == before[1]
    assert names(external.parent) == ["bin", "data", "onnx"]


def test_a_path_gives_a_whole_model(external: Path) -> None:
    before = external.read_bytes()
    folded, report = package.fuse(external)
    assert report.verify["status"] == "equal"
    assert all(tensor.raw_data for tensor in folded.graph.initializer)
    assert external.read_bytes() == before


@pytest.mark.parametrize("verify", [True, False])
def test_nothing_is_left_when_it_fails(external: Path, tmp_path: Path, verify: bool) -> None:
    options = FuseOptions(verify=verify)
    data = external.with_name("m.bin")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(BadInputError, match="but the file has"):
        package.fuse_file(external, tmp_path / "out.onnx", options=options)
    data.unlink()
    with pytest.raises(BadInputError, match="is missing"):
        package.fuse_file(external, tmp_path / "out.onnx", options=options)
    data.write_bytes(bytes(len(whole)))  # every output is 0: comparing proves nothing
    if verify:
        with pytest.raises(CheckFailedError):
            package.fuse_file(external, tmp_path / "out.onnx", options=options)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link", "hard", "linked/m.bin"])
def test_paths_that_lead_out(convbn: Any, external: Path, tmp_path: Path, location: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100_000))
    (external.parent / "link").symlink_to(secret)
    os.link(secret, external.parent / "hard")
    (external.parent / "linked").symlink_to(external.parent)
    light = onnx.load(external, load_external_data=False)
    for entry in light.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    external.write_bytes(light.SerializeToString())
    for verb in (("fuse", external, "-o", "out.onnx"), ("inspect", external), ("verify", external, external)):
        result = convbn(*verb)
        assert result.returncode == 3
        assert "'w'" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
def test_killed_at_any_time(external: Path, tmp_path: Path) -> None:
    """Whatever moment the process is killed at, the target is the old model or the new one, and works."""
    code = (
        "import sys, convbn\n"
        "while True:\n"
        "    for source in sys.argv[1:3]:\n"
        "        convbn.fuse_file(source, sys.argv[3], options=convbn.FuseOptions(verify=False), overwrite=True)\n"
    )
    other = tmp_path / "other.onnx"
    package.fuse_file(external, other, options=FuseOptions(verify=False))
    changed = onnx.load(other)
    changed.graph.name = "other"
    onnx.save(changed, other, save_as_external_data=True, location="other.bin", size_threshold=0)
    target = tmp_path / "target.onnx"
    found = set()
    for turn in range(8):
        process = subprocess.Popen([sys.executable, "-c", code, external, other, target])
        try:
            process.wait(1.5 + turn * 0.013)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if target.exists():
            assert same(external, target)
            found.add(onnx.load(target).graph.name)
    assert found
