"""What ``convbn`` leaves behind in the file system: its outputs, whole, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.mark.parametrize("arguments", [("fuse", "-o", "out.onnx"), ("inspect",)])
def test_nothing_is_written_outside_of_the_outputs(
    convbn: Any, small: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    verb, *options = arguments
    result = convbn(verb, small, *options, HOME=str(home), XDG_CACHE_HOME="", PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 0, result.stderr
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_part_of_a_model(tmp_path: Path, number: signal.Signals) -> None:
    """It is sent as soon as something lies in the folder, while the fold is still being verified."""
    nodes, constants = [], []
    for i in range(8):
        constants += [numpy_helper.from_array(np.ones((64, 64 if i else 3, 3, 3), np.float32), f"w{i}")]
        constants += [numpy_helper.from_array(np.ones(64, np.float32), f"{name}{i}") for name in "sbmv"]
        nodes.append(helper.make_node("Conv", [f"y{i}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        names = [f"{name}{i}" for name in "csbmv"]
        nodes.append(helper.make_node("BatchNormalization", names, [f"y{i + 1}"]))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width, 48, 48])
        for name, width in (("y0", 3), ("y8", 64))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "in.onnx",
    )
    out = tmp_path / "out"
    out.mkdir()
    command = [
        sys.executable,
        "-m",
        "convbn",
        "fuse",
        "in.onnx",
        "-o",
        "out/out.onnx",
        "--external-data",
        "always",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not os.listdir(out):
        pass
    process.send_signal(number)
    process.wait()
    assert process.returncode in (0, 128 + number)
    assert len(os.listdir(out)) == (2 if process.returncode == 0 else 0)


def test_ctrl_c_in_the_first_moment_is_exit_130(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """While the command line is loaded, nothing of it is there to catch the signal."""
    from importlib import import_module

    entry = import_module("convbn.__main__")

    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_run", interrupted)
    assert entry.main() == 130
    assert capsys.readouterr().err == "convbn: interrupted\n"


LOST = """
import os, signal, sys, time, weakref
import convbn.cli
from convbn.__main__ import main

class Thing:
    pass

def run(arguments):
    def callback(_):  # what is raised in here, Python only prints
        os.kill(os.getpid(), signal.{number})
        for _ in range(1000):
            pass

    thing = Thing()
    watched = weakref.ref(thing, callback)
    del thing
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        return 130
    return 0

convbn.cli.main = run
sys.exit(main())
"""


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 128 + signal.SIGTERM), ("SIGINT", 130)])
def test_a_signal_in_a_callback_of_pythons_own_is_not_lost(number: str, code: int) -> None:
    command = [sys.executable, "-c", LOST.format(number=number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert (done.returncode, done.stderr) == (code, "")
