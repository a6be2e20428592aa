"""The proof on trained and on exported networks: no right fold is refused, none that is spoilt by 1 % passes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.networks import randomised, torchvision_models

import convbn
from convbn.cli import main
from convbn.errors import CheckFailedError
from convbn.proof import verified

pytestmark = pytest.mark.slow

NAMES = ("mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "densenet121")


@pytest.fixture(scope="module")
def ocr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PP-OCRv4, as it is trained and shipped."""
    folder = tmp_path_factory.mktemp("ocr")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "-q",
        "rapidocr-onnxruntime==1.4.4",
        "-d",
        folder,
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the wheel cannot be had: {error}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "rapidocr_onnxruntime" / "models"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("ch_PP-OCRv4_det", shape) for shape in ("1x3x320x320", "1x3x224x352", "1x3x96x480")),
        *(("ch_PP-OCRv4_rec", shape) for shape in ("1x3x48x320", "1x3x48x160", "2x3x48x96")),
        *(("ch_ppocr_mobile_v2.0_cls", shape) for shape in ("1x3x48x192", "2x3x48x192", "1x3x48x96")),
    ],
)
def test_text_recognition_is_folded_cast_and_built(ocr: Path, name: str, shape: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    path, engine = str(ocr / f"{name}_infer.onnx"), tmp_path / "m.engine"
    command = ["export", path, "-o", str(engine), "--backend", "tensorrt-rtx", "--precision", "fp16"]
    assert main([*command, "--input-shape", f"x:{shape}", "--shapes", f"x={shape}:{shape}:{shape}"]) == 0
    made = json.loads(Path(f"{engine}.json").read_text())
    assert made["conversion"]["verify"]["status"] == "equal"
    sizes = tuple(map(int, shape.split("x")))
    report = convbn.fuse(path, input_shapes={"x": sizes}).report
    assert report.batchnorm.after == 0
    assert report.verify["status"] == "equal"
    assert all(fold["how"] for fold in report.verify["proof"]["folds"])


@pytest.mark.parametrize("batch", ["static", "open"])
@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
@pytest.mark.parametrize("name", NAMES)
def test_exported_networks(name: str, exporter: str, batch: str, tmp_path: Path) -> None:
    module = randomised(getattr(torchvision_models(), name)(weights=None)).eval()
    path = tmp_path / "m.onnx"
    options: dict[str, Any] = {"optimize": False}
    if exporter == "legacy":
        options = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    if batch == "open":
        axes = {"x": {0: "N"}, "y": {0: "N"}}
        dynamic = ({0: torch.export.Dim("N", min=1, max=64)},)
        options |= {"dynamic_axes": axes} if exporter == "legacy" else {"dynamic_shapes": dynamic}
    torch.onnx.export(
        module,
        (torch.randn(2, 3, 96, 96),),
        path,
        input_names=["x"],
        output_names=["y"],
        dynamo=exporter == "dynamo",
        verbose=False,
        external_data=False,
        **options,
    )
    result = convbn.fuse(path)
    assert result.report.verify["status"] == "equal"
    assert all(fold["how"] for fold in result.report.verify["proof"]["folds"])
    layers = {fold.into[0] for fold in result.report.folded if fold.into}
    spoilt = next(node for node in result.model.graph.node if node.name in layers)
    for tensor in result.model.graph.initializer:
        if tensor.name == spoilt.input[1]:
            wrong = numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    onnx.save(result.model, tmp_path / "wrong.onnx")
    with pytest.raises(CheckFailedError, match="not equal"):
        verified(result.report, path, tmp_path / "wrong.onnx")
