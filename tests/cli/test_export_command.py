"""``convbn export`` as a user runs it: ways out, options, refusals, and a Ctrl-C in the middle of a build."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.cli import main


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Enough layers that a build takes a second or two."""
    nodes, weights, value, channels = [], {}, "x", 3
    for index in range(40):
        wider = 8 + index
        weights[f"w{index}"] = random(wider, channels, 3, 3)
        weights |= batchnorm_parameters(wider, prefix=f"n{index}")
        nodes += [
            helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1] * 4),
            batchnorm(f"c{index}", f"b{index}", prefix=f"n{index}"),
            helper.make_node("Relu", [f"b{index}"], [f"r{index}"]),
        ]
        value, channels = f"r{index}", wider
    path = tmp_path / "deep.onnx"
    onnx.save(model(nodes, {"x": [1, 3, 16, 16]}, [value], weights), path)
    return path


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("rtx")
def test_ctrl_c_in_a_build_leaves_nothing(deep: Path, tmp_path: Path) -> None:
    """On a terminal, with the progress bar: the signal is sent when the bar says that TensorRT is at work."""
    screen, terminal = os.openpty()
    command = ["export", deep.name, "-o", "out.engine", "--no-verify", "--backend", "tensorrt-rtx"]
    process = subprocess.Popen(
        [sys.executable, "-m", "convbn", *command],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    shown = b""
    while b"building [" not in shown and select.select([screen], [], [], 60)[0]:
        shown += os.read(screen, 4096)
    assert b"building [" in shown
    process.send_signal(signal.SIGINT)
    try:
        while select.select([screen], [], [], 60)[0]:
            shown += os.read(screen, 4096)
    except OSError:  # the other end is closed
        pass
    assert process.wait(60) == 130
    os.close(screen)
    assert shown.endswith(b"convbn: interrupted\r\n")
    assert b"Traceback" not in shown
    assert listing(tmp_path) == ["deep.onnx"]


@pytest.mark.usefixtures("rtx")
def test_the_sidecar_names_the_source(convbn: Any, small: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    for name, more in (("folded", []), ("plain", ["--no-fuse"])):
        command = ["export", "small.onnx", "-o", f"{name}.engine", "--backend", "tensorrt-rtx", "--no-verify"]
        assert convbn(*command, *more).returncode == 0
    folded, plain = (
        json.loads((tmp_path / f"{name}.engine.json").read_text()) for name in ("folded", "plain")
    )
    assert folded["fold_summary"]["input"]["sha256"] == digest
    assert folded["onnx"]["file"] is None
    assert plain["fold_summary"] is None
    assert plain["onnx"]["file"] == "small.onnx"
    assert plain["onnx"]["sha256"] == digest
    assert plain["command"].startswith("tensorrt_rtx --onnx=small.onnx ")


@pytest.mark.usefixtures("rtx")
def test_progress_is_for_terminals_only(convbn: Any, small: Path) -> None:
    result = convbn("export", small, "-o", "out.engine", "--backend", "tensorrt-rtx", "--no-verify")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["-o", "a.engine", "--optimization-level", "5"], 4, "does not honour option optimization-level"),
        (["-o", "a.engine", "--timing-cache", "auto"], 4, "does not honour option timing-cache"),
        (["-o", "a.engine", "--workspace", "lots"], 2, "'lots' is not a size; write it like 512MiB or 4GiB"),
        (["-o", "a.engine", "--compute-capability", "9.0"], 2, "does not build for compute capability 9.0"),
        (["-o", "a.engine", "--shapes", "x=1x3:2x3"], 2, "has 2 shapes; write NAME=MIN:OPT:MAX"),
        (["-o", "a.engine", "--shapes", "q=1x3x8x8"], 2, "the model has no input 'q'"),
        (["-o", "a.engine", "--triton", "repo"], 4, "Triton loads engines of classic TensorRT only"),
        (["-o", "a.engine", "--dynamic-batch"], 2, "--dynamic-batch is for checkpoints"),
        (["-o", "a.engine", "--json", "r.json", "--no-fuse"], 2, "--no-fuse makes none"),
        (["-o", "a.onnx", "--opset", "999"], 4, "knows no opset 999"),
        (["-o", "a.onnx", "--workspace", "4GiB"], 2, "--workspace is for engines"),
        (["-o", "a.onnx", "--backend", "tensorrt"], 2, "--backend is for engines"),
        (["-o", "a.onnx", "--no-tf32"], 2, "--no-tf32 is for engines"),
        (["-o", "a.onnx", "--compute-capability", "8.6"], 2, "--compute-capability is for engines"),
        (["-o", "a.onnx", "--shapes", "x:1x3x8x8"], 2, "--shapes is for engines"),
        (
            ["-o", "a.onnx", "--shapes", "x=1x3x8x8", "--triton", "repo"],
            2,
            "dimension 0 of 'x' is not dynamic",
        ),
        (["-o", "a.pt2"], 2, "an ONNX file cannot become a PyTorch program"),
        (["-o", "a.pt2", "--opset", "18"], 2, "--opset is not for PyTorch programs"),
        (["-o", "a.pt2", "--triton", "repo"], 2, "--triton is not for PyTorch programs"),
        (["-o", "a.h5"], 2, "cannot write a '.h5' file"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    small: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if any(name.endswith(".engine") for name in arguments):
        arguments = [*arguments, "--backend", "tensorrt-rtx"]
    assert main(["export", "small.onnx", "--no-verify", *arguments]) == code
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert told in stderr
    assert listing(tmp_path) == ["small.onnx"]


def test_an_existing_triton_model_is_found_before_any_work(convbn: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "repo" / "out").mkdir(parents=True)
    result = convbn("export", small, "-o", "out.onnx", "--triton", "repo", "--no-verify")
    assert result.returncode == 5
    assert "repo/out: already exists; use --force to replace it" in result.stderr
    assert listing(tmp_path) == ["repo", "small.onnx"]


def test_onnx_with_opset_provenance_and_triton(convbn: Any, small: Path, tmp_path: Path) -> None:
    result = convbn("export", small, "-o", "out.onnx", "--opset", "20", "--triton", "repo")
    assert result.returncode == 0, result.stderr
    written = onnx.load(tmp_path / "out.onnx")
    facts = {entry.key: entry.value for entry in written.metadata_props}
    assert facts["convbn.source"] == "small.onnx"
    assert facts["convbn.batchnorm"] == "2 before, 1 after"
    assert facts["convbn.verified"] == "equal"
    assert len(facts["convbn.source_sha256"]) == 64
    assert [entry.version for entry in written.opset_import if entry.domain == ""] == [20]
    assert (tmp_path / "repo/out/1/model.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert 'platform: "onnxruntime_onnx"' in (tmp_path / "repo/out/config.pbtxt").read_text()
    assert convbn("export", small, "-o", "again.onnx", "--opset", "20").returncode == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


@pytest.mark.usefixtures("rtx")
def test_an_engine_for_two_gpus_with_two_profiles(convbn: Any, small: Path, tmp_path: Path) -> None:
    graph = onnx.load(small)
    for value in (*graph.graph.input, *graph.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(graph, tmp_path / "free.onnx")
    result = convbn(
        "export", "free.onnx", "-o", "out.engine", "--backend", "tensorrt-rtx", "--input-shape", "x:2x3x8x8",
        "--shapes", "x=1x3x8x8:2x3x8x8:4x3x8x8;x=8x3x8x8", "--compute-capability", "8.6,12.0", "--workspace", "1GiB",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    sidecar = json.loads((tmp_path / "out.engine.json").read_text())
    assert sidecar["options"] == {"workspace": 1 << 30, "compute_capabilities": ["8.6", "12.0"]}
    assert [profile["x"]["opt"][0] for profile in sidecar["profiles"]] == [2, 8]


@pytest.mark.slow
def test_a_checkpoint_becomes_a_program_or_onnx_with_a_free_batch(convbn: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import net

        torch.save(net.make().state_dict(), tmp_path / "net.pth")
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["net"]
    common = ["net.pth", "--arch", "net:make", "--input-shape", "x:2x3x8x8"]
    result = convbn("export", *common, "-o", "out.pt2", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    program = torch.export.load(tmp_path / "out.pt2")
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    result = convbn("export", "out.pt2", "-o", "again.pt2", "--no-fuse", "--trust-checkpoint")
    assert result.returncode == 0, result.stderr
    assert len(torch.export.load(tmp_path / "again.pt2").graph.nodes) == len(program.graph.nodes)
    result = convbn(
        "export", *common, "-o", "out.onnx", "--dynamic-batch", "--opset", "19", PYTHONPATH=str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    written = onnx.load(tmp_path / "out.onnx")
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [entry.version for entry in written.opset_import if entry.domain == ""] == [19]


@pytest.mark.usefixtures("rtx")
def test_inspect_says_what_file_and_sidecar_prove(convbn: Any, small: Path, tmp_path: Path) -> None:
    built = convbn("export", small, "-o", "out.engine", "--backend", "tensorrt-rtx", "--no-verify")
    assert built.returncode == 0, built.stderr
    result = convbn("inspect", "out.engine", "--json", "report.json")
    assert result.returncode == 0, result.stderr
    for line in (
        "built with: tensorrt-rtx 1.",
        "sidecar: describes this file",
        f"folded from: {small}, sha256 ",
        "device: built without a GPU",
        "input: x FLOAT 2x3x8x8",
        "Scale layers: 2 before, 1 after the fold",
        "layers are not listed: ",
    ):
        # A narrow terminal breaks lines, and long paths inside.
        assert "".join(line.split()) in "".join(result.stdout.split())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sidecar"]["engine"]["sha256"] == report["sha256"]


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["small.onnx", "--trust-engine"], "small.onnx: --trust-engine is for engines"),
        (
            ["a.engine", "--only", "batchnorm-into-conv"],
            "a.engine: options of a fold mean nothing for an engine",
        ),
    ],
)
def test_inspect_refuses_what_means_nothing(
    small: Path,
    tmp_path: Path,
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.engine").write_bytes(b"vtrt" + bytes(100))
    assert main(["inspect", *arguments]) == 2
    assert capsys.readouterr().err == f"convbn: {told}\n"
