"""How far a proof is: a bar on a terminal that leaves no line behind, and a callback in Python."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random
from torch import nn

import convbn
from convbn.commands.steps.console import Console
from convbn.common.text import text_width
from convbn.errors import UsageError


def network() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    return model(nodes, {"x": [1, 3, 5, 5]}, ["y"], {"w": random(4, 3, 1, 1), **batchnorm_parameters(4)})


def on_a_terminal(arguments: list[str]) -> str:
    """What a command writes to stderr where that is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "convbn", *arguments],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm"},
    ):
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 4096):
                written += piece
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    return written.decode()


@pytest.mark.parametrize("verb", ["fuse", "verify"])
def test_the_bar_is_taken_away_when_the_proof_is_done(verb: str, tmp_path: Path) -> None:
    source, target = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(network(), source)
    onnx.save(network(), target)
    told = on_a_terminal(
        ["fuse", str(source), "-o", str(target), "--force"]
        if verb == "fuse"
        else ["verify", str(source), str(target)]
    )
    doing = "verifying" if verb == "fuse" else "comparing"
    assert f"{doing} [····················] original 0/3" in told
    assert ("regions in float64 0/1" in told) == (verb == "fuse")
    rows = [row.rsplit("\r\x1b[K", 1)[-1].strip() for row in told.split("\n")]
    assert not any("·" in row or "█" in row for row in rows)


def test_a_callback_is_told_phase_by_phase(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    told: list[tuple[str, int, int]] = []

    def progress(*step: object) -> None:
        told.append(step)  # type: ignore[arg-type]  # three, as Progress says

    convbn.fuse_file(
        tmp_path / "m.onnx", tmp_path / "o.onnx", inputs={"x": random(1, 3, 5, 5)}, progress=progress
    )
    ends = [("original", 0, 3), ("noise of the original", 1, 3), ("result", 2, 3)]
    assert told == [*ends, ("regions", 0, 1), ("regions", 1, 1), ("regions in float64", 0, 1)]
    told.clear()
    assert convbn.verify(network(), tmp_path / "o.onnx", progress=progress)
    assert told == ends


def test_what_a_callback_raises_comes_out_and_is_no_verdict() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    image = torch.ones(1, 3, 4, 4)

    class StoppedError(Exception):
        pass

    told = []

    def stop(phase: str, _done: int, _steps: int) -> None:
        told.append(phase)
        if phase == "folds in the outputs":
            raise StoppedError

    with pytest.raises(StoppedError):
        convbn.fuse(torch.export.export(module, (image,)), progress=stop)
    convbn.fuse(module, image, progress=stop)
    assert told[-1] == "layers in float64"


def test_an_engine_is_verified_on_inputs_that_were_given(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    sample = random(1, 3, 5, 5)
    with pytest.raises(UsageError, match="gives no 'x'"):
        convbn.build_engine(network(), tmp_path / "e.rtx", precision="fp16", inputs={"z": sample})
    assert not any(tmp_path.iterdir())
    engine = convbn.build_engine(
        network(), tmp_path / "e.rtx", backend="tensorrt-rtx", precision="fp16", inputs=[{"x": sample}] * 3
    )
    verify = engine.sidecar["conversion"]["verify"]  # type: ignore[index]  # see the schema
    assert (verify["samples"], verify["seed"]) == (3, None)
    # Beyond what fp16 holds, on these inputs and not on random ones.
    with pytest.raises(convbn.CheckFailedError, match="fp16"):
        convbn.build_engine(
            network(), tmp_path / "f.rtx", precision="fp16", inputs={"x": np.full_like(sample, 7e4)}
        )


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_nothing_that_was_drawn_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    console = Console()
    with console.phase("measuring", " s") as progress:
        progress("网络" * 30, 3, 6)
        console.say("told meanwhile")
        assert screen.getvalue().endswith("\r\x1b[K")
        progress("again", 4, 6)
    with pytest.raises(KeyboardInterrupt), console.phase("reading"):
        raise KeyboardInterrupt
    first, wide, gone, again, *_ = screen.getvalue().split("\r\x1b[K")[1:]
    assert (first, gone, again) == ("measuring …", "", "measuring [█████████████·······] again 4/6 s")
    assert wide.startswith("measuring [██████████··········] 网络")
    assert text_width(wide) in (58, 59)  # of 60 columns
    assert screen.getvalue().endswith("reading …\r\x1b[K")
    assert "\n" not in screen.getvalue()
    assert capsys.readouterr().out == "told meanwhile\n"
