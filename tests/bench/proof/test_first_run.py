"""A model that onnxruntime dies of is an error, and not the end of the caller's process."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm_parameters, model, random

import convbn
from convbn.bench.models.errors import ReferenceFailedError, SessionError
from convbn.bench.proof.graph import first_run
from convbn.bench.proof.graph.first_run import survive

FEEDS = {"x": np.zeros((1, 4, 3, 3), np.float32)}


def deadly() -> onnx.ModelProto:
    """A branch with a BatchNorm whose further outputs have no names, which onnxruntime 1.32 does not survive."""
    names = ["x", *batchnorm_parameters(4)]
    norm = helper.make_node("BatchNormalization", names, ["b", "", "", "", ""], name="norm")
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 4, 3, 3])
    branch = helper.make_graph([norm], "branch", [], [out])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "other", [], [out])
    nodes = [
        helper.make_node("If", ["c"], ["i"], name="if", then_branch=branch, else_branch=other),
        helper.make_node("Conv", ["i", "w"], ["k"], name="conv"),
        helper.make_node("BatchNormalization", ["k", *names[1:]], ["y"], name="behind"),
    ]
    held = {"c": np.array(True), "w": random(4, 4, 1, 1), **batchnorm_parameters(4)}
    return model(nodes, {"x": [1, 4, 3, 3]}, ["y"], held, opset=13)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_kills_the_process_kills_another_one(threads: int) -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    if threads == 2:
        other.start()
    try:
        with pytest.raises(SessionError, match=r"ends the process that loads or runs it \(SIG(SEGV|ABRT)\)"):
            survive(deadly().SerializeToString(), FEEDS)
    finally:
        done.set()


@pytest.mark.parametrize("threads", [1, 2])
def test_what_only_fails_is_left_to_the_caller(threads: int, capfd: pytest.CaptureFixture[str]) -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    if threads == 2:
        other.start()
    try:
        survive(b"no model at all", FEEDS)
        identity = model([helper.make_node("Identity", ["x"], ["y"])], {"x": [1, 4, 3, 3]}, ["y"], {})
        survive(identity.SerializeToString(), FEEDS)
    finally:
        done.set()
    assert capfd.readouterr() == ("", "")


def test_what_another_process_says_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "import sys; sys.stdin.read(1); print('out'); print('err', file=sys.stderr)"
    monkeypatch.setattr(first_run, "_CHILD", said.replace("stdin.read", "stdin.buffer.read"))
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        survive(b"", FEEDS)
    finally:
        done.set()
        other.join()
    assert capfd.readouterr() == ("", "")


def test_a_fold_of_it_is_refused_and_nothing_written(tmp_path: Path) -> None:
    onnx.save(deadly(), tmp_path / "m.onnx")
    with pytest.raises(ReferenceFailedError, match="ends the process") as caught:
        convbn.fuse(tmp_path / "m.onnx")
    assert "verify=False" in str(caught.value.hint)
    command = [sys.executable, "-m", "convbn", "fuse", tmp_path / "m.onnx", "-o", tmp_path / "out.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ends the process" in done.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert not convbn.verify(FIRST, deadly(), inputs=[FEEDS])


FIRST = model([helper.make_node("Identity", ["x"], ["y"])], {"x": [1, 4, 3, 3]}, ["y"], {})
