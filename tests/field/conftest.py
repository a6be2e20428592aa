"""A cache of one small export."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from coverage_report.trial import write_tiny

NAME = "tv_squeezenet1_1"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with one export: a convolution and a BatchNorm."""
    models = tmp_path / "models"
    models.mkdir()
    for variant in ("", ".signed"):
        write_tiny(models / f"{NAME}{variant}.onnx")
        x = np.arange(4, dtype="f4").reshape(1, 1, 2, 2)
        y = x / np.sqrt(np.float32(1 + 1e-5)) - 1 / math.sqrt(1 + 1e-5) + 1
        np.savez(
            models / f"{NAME}{variant}.npz", x_0=x, reference_0_0=y.astype("f4"), truth_0_0=y.astype("f8")
        )
    variants = '{"": {"unrunnable": null, "sha256": "aa"}, ".signed": {"unrunnable": null, "sha256": "bb"}}'
    (models / f"{NAME}.json").write_text(
        f'{{"name": "{NAME}", "failed": null, "bn_modules": 1, "batchnorms": 1, "nodes": 2, "parameters": 5, '
        f'"shape": [1, 1, 2, 2], "variants": {variants}}}'
    )
    return tmp_path


@pytest.fixture
def arguments(cache: Path, tmp_path: Path) -> list[str]:
    """Of the coverage report on that export alone, into files beside it."""
    page, results = tmp_path / "coverage.md", tmp_path / "coverage.json"
    return ["--cache", str(cache), "--out", str(page), "--json", str(results), "--only", NAME]
