"""Checkpoint to engine on real architectures, without a GPU: what TensorRT's parser sees, and the same bytes again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.networks import randomised, torchvision_models

import convbn
from convbn.export.engines.build.network import network_summary

pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

RTX = "tensorrt-rtx"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        pytest.param("resnet50", 53, 0, marks=pytest.mark.slow),
        ("mobilenet_v2", 52, 0),
        # Its first BatchNorm in each block reads a concatenation that others read too.
        pytest.param("densenet121", 121, 62, marks=pytest.mark.slow),
    ],
)
def test_scale_layers_and_engines(name: str, before: int, after: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = randomised(torchvision_models().get_model(name))
    unfused = convbn.export_onnx(module, torch.randn(1, 3, 64, 64), fold=False)
    folded, report = convbn.fuse(unfused)
    assert report.verify["status"] == "equal"
    assert network_summary(unfused, RTX)["SCALE"] == before
    assert network_summary(folded, RTX)["SCALE"] <= after
    engine = convbn.build_engine(folded, tmp_path / "a.engine", backend=RTX, unfused_model=unfused)
    assert engine.sidecar["scale_layers"]["before"] == before  # type: ignore[index]  # see the schema
    assert engine.sidecar["scale_layers"]["after"] <= after  # type: ignore[index]  # see the schema
    again = convbn.build_engine(folded, tmp_path / "b.engine", backend=RTX)
    assert engine.sha256 == again.sha256


def test_the_same_engine_in_another_process(tmp_path: Path) -> None:
    """Whatever the hash seed and the number of threads: the folded model and its engine are the same bytes."""
    torch.manual_seed(0)
    module = randomised(torchvision_models().get_model("mobilenet_v2"))
    unfused = convbn.export_onnx(module, torch.randn(1, 3, 64, 64), fold=False)
    (tmp_path / "m.onnx").write_bytes(unfused.SerializeToString())
    digests = set()
    for seed, threads in (("0", "1"), ("12345", "2")):
        command = ["export", "m.onnx", "-o", f"{seed}.engine", "--backend", RTX, "--no-verify"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-m", "convbn", *command], cwd=tmp_path, env=environment, check=True)
        sidecar = json.loads((tmp_path / f"{seed}.engine.json").read_text())
        digests.add((sidecar["onnx"]["sha256"], sidecar["engine"]["sha256"]))
    assert len(digests) == 1
