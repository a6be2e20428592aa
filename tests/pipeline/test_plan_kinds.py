"""Every kind of model and target that a plan can name, done by real processes: checkpoints, programs, hubs, engines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random
from support.plans import run, save_network, statuses, whole

torch = pytest.importorskip("torch")

NETS = """
import torch
def net(width=2):
    layers = torch.nn.Conv2d(3, width, 3), torch.nn.BatchNorm2d(width), torch.nn.ReLU()
    return torch.nn.Sequential(*layers)
"""


def batchnorm_net(width: int) -> Any:
    """The network that ``nets:net`` is."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, width, 3), torch.nn.BatchNorm2d(width), torch.nn.ReLU()
    return torch.nn.Sequential(*layers).eval()


def sidecar(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.with_name(f"{path.name}.json").read_text()))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with code beside it, a program, and data to calibrate on."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "nets.py").write_text(NETS)
    paths = [str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    module = batchnorm_net(4)
    torch.save(module.state_dict(), tmp_path / "ck.pth")
    torch.export.save(torch.export.export(module, (torch.randn(1, 3, 8, 8),)), tmp_path / "prog.pt2")
    samples = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    return tmp_path


CHECKPOINT = (
    '[[models]]\npath = "ck.pth"\narch = "nets:net"\narch_args = ["width=4"]\ninput_shapes = "x:2x3x8x8"\n'
)
PROGRAM = '[[models]]\npath = "prog.pt2"\n'
ONNX = '[[targets]]\nkind = "onnx"\n'
PT2 = '[[targets]]\nkind = "pt2"\n'


def planned(folder: Path, text: str) -> None:
    (folder / "plan.toml").write_text(f'output = "out"\n{text}[reports]\njson = "run.json"\n')


@pytest.mark.slow
def test_checkpoints_and_programs_as_onnx_and_as_programs(work: Path) -> None:
    planned(work, f"{CHECKPOINT}{PROGRAM}trust_checkpoint = true\n{ONNX}{PT2}")
    run(work, "run", "plan.toml")
    assert set(statuses(work).values()) == {"done"}
    assert set(whole(work / "out")) == {"ck.onnx", "ck.pt2", "prog.onnx", "prog.pt2"}
    given = torch.randn(1, 3, 8, 8)
    expected = batchnorm_net(4)(given)
    for name in ("ck", "prog"):
        program = torch.export.load(work / "out" / f"{name}.pt2")
        assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
        batch = program.example_inputs[0][0].shape[0]
        torch.testing.assert_close(program.module()(given.repeat(batch, 1, 1, 1))[:1], expected)
        operators = {node.op_type for node in onnx.load(work / "out" / f"{name}.onnx").graph.node}
        assert "BatchNormalization" not in operators
    run(work, "run", "plan.toml")
    assert set(statuses(work).values()) == {"cached"}
    (work / "code" / "nets.py").write_text(NETS + "# edited\n")
    _, said, _ = run(work, "run", "plan.toml", "--list")
    assert "ck/fold           changed: the model, or how it is read" in said
    assert "prog/fold         cached" in said


@pytest.mark.slow
def test_benches_are_kept_and_a_gate_that_fails_loses_no_figure(work: Path) -> None:
    save_network(work / "a.onnx")
    text = (
        '[[models]]\npath = "a.onnx"\n'
        '[[benches]]\nruntimes = ["onnxruntime-cpu@off"]\nbudget = 0.2\noptions = ["--no-memory"]\n'
    )
    planned(work, text)
    (work / "out").mkdir()
    run(work, "run", "plan.toml", "--html", "out/run.html")
    assert set(statuses(work).values()) == {"done"}
    (case,) = json.loads((work / "out" / "a.bench.json").read_text())["cases"]
    assert {row["status"] for row in case["rows"]} == {"measured"}
    assert '<a href="a.bench.html">a</a>' in (work / "out" / "run.html").read_text()
    assert (work / "out" / "a.bench.html").exists()
    run(work, "run", "plan.toml")
    assert set(statuses(work).values()) == {"cached"}
    planned(work, f'{text}[gates]\nfail_if = ["batchnorm.left < 1"]\n')
    (work / "out" / "a.bench.json").unlink()
    _, said, _ = run(work, "run", "plan.toml", code=1)
    assert "batchnorm.left" in said
    assert statuses(work) == {"a/fold": "cached", "a/prove": "cached", "a/bench/measure": "failed"}
    assert (work / "out" / "a.bench.json").exists()
    (work / "out" / "a.bench.html").write_text("mine")
    planned(work, text.replace("0.2", "0.3"))
    _, said, _ = run(work, "run", "plan.toml", code=5)
    assert "already exists; use --force to replace it" in " ".join(said.split())
    assert (work / "out" / "a.bench.html").read_text() == "mine"


@pytest.mark.slow
def test_a_checkpoint_and_a_program_that_are_not_trusted_or_named(work: Path) -> None:
    planned(work, f'[[models]]\npath = "ck.pth"\n{PROGRAM}{PT2}')
    _, said, _ = run(work, "run", "plan.toml", code=3)
    said = "".join(said.split())  # lines end where the folder's name lets them
    for part in (
        "ck.pth: is a checkpoint, which holds weights and no architecture;",
        "prog.pt2: is a torch.export",
    ):
        assert "".join(part.split()) in said
    assert set(statuses(work).values()) == {"failed"}
    assert not list((work / "out").glob("*"))


@pytest.mark.slow
def test_int8_engines_of_several_gpus_and_profiles(work: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    weights = {"w": random(6, 3, 3, 3), **batchnorm_parameters(6)}
    onnx.save(model(nodes, {"x": ["N", 3, 8, 8]}, ["y"], weights), work / "free.onnx")
    save_network(work / "a.onnx")
    engine = '[[targets]]\nkind = "engine"\nbackend = "tensorrt-rtx"\n'
    planned(
        work,
        f"""
[[models]]
path = ["a.onnx", "free.onnx"]
calibration = "samples.npz"
{CHECKPOINT}
{engine}models = ["a", "ck"]
compute_capability = ["8.6", "8.9,12.0"]
{engine}name = "small"
models = "a"
precision = "int8"
{engine}name = "free"
models = "free"
profiles = ["x=1x3x8x8:2x3x8x8:4x3x8x8", "x=1x3x8x8:8x3x8x8:16x3x8x8"]
""",
    )
    run(work, "run", "plan.toml")
    assert set(statuses(work).values()) == {"done"}
    names = {path.name for path in (work / "out").glob("*.engine")}
    fixed = {f"{name}.engine-{sm}.engine" for name in ("a", "ck") for sm in ("sm86", "sm89-120")}
    assert names == fixed | {"a.small.engine", "free.free-profile1.engine", "free.free-profile2.engine"}
    told = sidecar(work / "out" / "free.free-profile2.engine")
    assert told["profiles"][0]["x"] == {"min": [1, 3, 8, 8], "opt": [8, 3, 8, 8], "max": [16, 3, 8, 8]}
    small = sidecar(work / "out" / "a.small.engine")
    assert small["precision"] == "int8"
    assert small["conversion"]["precision"] == "int8"
    assert small["conversion"]["calibration"]["samples"] == 4, "of two each, as the model takes them"
    run(work, "run", "plan.toml")
    assert set(statuses(work).values()) == {"cached"}
    np.savez(work / "samples.npz", x=np.zeros((8, 3, 8, 8), np.float32))
    _, said, _ = run(work, "run", "plan.toml", "--list")
    assert said.count("unfinished") == 2, said
    assert "2 of 14 steps would run, 12 are cached" in said


@pytest.mark.parametrize("offline", ["1", ""])
def test_a_model_of_a_hub_that_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    if not offline:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    planned(tmp_path, f'[[models]]\npath = "hf-hub:someone/net"\n{ONNX}')
    _, _, err = run(tmp_path, "run", "plan.toml", code=5)
    assert err.startswith("convbn: hf-hub:someone/net: ")
    assert "is not in the cache and cannot be fetched" in err
    assert "set HF_HOME to a copy of that cache" in err


@pytest.mark.slow
def test_a_model_of_a_hub_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights with a config that names an architecture of timm, as huggingface_hub keeps them."""
    pytest.importorskip("huggingface_hub")
    from safetensors.torch import save_file
    from support.networks import torchvision_models

    torchvision_models()
    timm = pytest.importorskip("timm")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "sitecustomize.py").write_text(
        "from support.networks import torchvision_models\ntorchvision_models()\n"
    )
    paths = [str(tmp_path / "named"), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kept = tmp_path / "hub" / "hub" / "models--someone--net"
    snapshot = kept / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), snapshot / "model.safetensors")
    config = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": {"tag": "own"}}
    (snapshot / "config.json").write_text(json.dumps(config))
    planned(tmp_path, f'[[models]]\npath = "hf-hub:someone/net"\ninput_shapes = "x:1x3x32x32"\n{ONNX}')
    run(tmp_path, "run", "plan.toml")
    assert set(whole(tmp_path / "out")) == {"someone/net.onnx"}
    run(tmp_path, "run", "plan.toml")
    assert set(statuses(tmp_path).values()) == {"cached"}
