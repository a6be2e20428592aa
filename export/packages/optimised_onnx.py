"""ONNX models as onnxruntime has rewritten them, in ONNX's format with onnxruntime's own operators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convbn.export.packages.onnxruntime_model import optimised, require
from convbn.export.packages.package import Package, Packed

__all__ = ["PACKAGE"]


def pack(model: Any, examples: Sequence[Any], path: Path) -> Packed:
    """See :func:`convbn.export.packages.onnxruntime_model.optimised`."""
    return optimised(model, path, "ONNX")


PACKAGE = Package(("onnxruntime",), require, pack)
