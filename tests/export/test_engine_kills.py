"""SIGKILL at any moment leaves the old engine or the new one, whole: fault 22."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import onnx
import pytest

from convbn.errors import FileAccessError
from convbn.export.engines.build.build import build_engine
from convbn.export.engines.errors import EngineMismatchError
from convbn.export.engines.sidecar import read_sidecar
from convbn.export.files.sidecar import write_with_sidecar

pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

RTX = "tensorrt-rtx"
KILLS = 50
# What a build tells of its progress, a few builds over.
MOST_SIGNS = 100

# A fork shares what is imported, so that fifty kills take seconds; nothing of TensorRT is used before it.
BUILDER = """
import os, sys
import onnx
import tensorrt_rtx
from convbn.export.engines.build.build import build_engine
from convbn.export.engines import sidecar
for line in sys.stdin:
    signs, sign = os.pipe()
    child = os.fork()
    if child == 0:
        def tell(*event): os.write(sign, b".")
        while True:
            for name in ("one.onnx", "two.onnx"):
                build_engine(name, "a.engine", backend="tensorrt-rtx", overwrite=True, progress=tell)
                tell()
    for _ in range(int(line)):
        os.read(signs, 1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(signs)
    os.close(sign)
    print("killed", flush=True)
"""


@pytest.mark.slow
def test_fifty_kills(tiny, tmp_path):
    valid = {}
    for name, model in (("one", tiny.conv_bn(folded=False)), ("two", tiny.conv_bn(folded=True))):
        onnx.save(model, tmp_path / f"{name}.onnx")
        artifact = build_engine(tmp_path / f"{name}.onnx", tmp_path / name, backend=RTX)
        valid[artifact.sha256] = name
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    seen = {"none": 0, "whole": 0, "told": 0}
    rng = random.Random(0)
    for _ in range(KILLS):
        process.stdin.write(f"{rng.randrange(1, MOST_SIGNS)}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "killed\n"
        engine = tmp_path / "a.engine"
        if not engine.exists():
            seen["none"] += 1
            continue
        # Whatever the moment, the engine is one that was really built, to the last byte.
        assert hashlib.sha256(engine.read_bytes()).hexdigest() in valid
        try:
            read_sidecar(engine)
            seen["whole"] += 1
        except EngineMismatchError:  # killed between the two renames
            seen["told"] += 1
    process.stdin.close()
    assert process.wait(10) == 0
    assert seen["whole"] > seen["told"]
    build_engine(tmp_path / "one.onnx", tmp_path / "a.engine", backend=RTX, overwrite=True)
    read_sidecar(tmp_path / "a.engine")


def test_a_sidecar_without_its_engine_is_in_nobodys_way(saved, tmp_path):
    """What a kill between the two renames of a first build leaves."""
    build_engine(saved, tmp_path / "a", backend=RTX)
    (tmp_path / "a").unlink()
    assert (tmp_path / "a.json").exists()
    build_engine(saved, tmp_path / "a", backend=RTX)
    read_sidecar(tmp_path / "a")


def test_another_engine_in_the_way_keeps_its_sidecar(saved, tmp_path):
    """Written by somebody else between the check at the start of a build and its end."""
    artifact = build_engine(saved, tmp_path / "a", backend=RTX)
    with pytest.raises(FileAccessError, match="already exists"):
        write_with_sidecar(b"other", {"schema_version": "1"}, tmp_path / "a", overwrite=False)
    assert read_sidecar(tmp_path / "a") == artifact.sidecar


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_engine_that_cannot_get_its_name_changes_nothing(
    saved, tiny, tmp_path, names, monkeypatch, overwrite
):
    if overwrite:
        build_engine(tiny.conv_bn(folded=True), tmp_path / "a", backend=RTX)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    for function in (os.replace, os.link):

        def fail(source, target, *args, function=function, **kwargs):
            if str(target).endswith("/a"):
                raise OSError(5, "Input/output error")
            return function(source, target, *args, **kwargs)

        monkeypatch.setattr(os, function.__name__, fail)
    with pytest.raises(FileAccessError, match="cannot be written: input/output error"):
        build_engine(saved, tmp_path / "a", backend=RTX, overwrite=overwrite)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_full_disk_leaves_nothing(saved, tmp_path, names):
    """A limit on the size of files stands for it: the engine is larger, the sidecar is not."""
    program = (
        "import resource, sys\nfrom convbn.export.engines.build.build import build_engine\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "build_engine(sys.argv[1], 'b', backend='tensorrt-rtx')\n"
    )
    command = [sys.executable, "-c", program, str(saved)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "FileAccessError: b: cannot be written: file too large" in result.stderr
    assert names(tmp_path) == ["tiny.onnx"]


def test_sigterm_in_a_build_leaves_nothing(saved, tmp_path, names):
    program = (
        "import sys\nfrom convbn.export.engines.build.build import build_engine\n"
        "def say(*event): print(*event, flush=True)\n"
        "build_engine(sys.argv[1], 'b', backend='tensorrt-rtx', progress=say)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(saved)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while names(tmp_path) != ["tiny.onnx"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.returncode == -signal.SIGTERM
    assert names(tmp_path) == ["tiny.onnx"]
