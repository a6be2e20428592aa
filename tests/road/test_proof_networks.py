"""The proof on trained and on exported networks: no right fold is refused, none that is spoilt by 1 % passes."""

from __future__ import annotations

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
        *(("det", shape) for shape in ((1, 3, 320, 320), (1, 3, 640, 640), (1, 3, 96, 480))),
        *(("rec", shape) for shape in ((1, 3, 48, 320), (1, 3, 48, 160), (2, 3, 48, 96))),
    ],
)
def test_text_recognition_is_folded_and_every_fold_shown(
    ocr: Path, name: str, shape: tuple[int, ...]
) -> None:
    report = convbn.fuse(ocr / f"ch_PP-OCRv4_{name}_infer.onnx", input_shapes={"x": shape}).report
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
