"""NVIDIA's ModelOpt as converter to half precision, where a user has installed it."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.export.onnx_io.read import save_model
from convbn.export.precision.errors import PrecisionError

if TYPE_CHECKING:
    import onnx

__all__ = ["convert_with_modelopt"]

_PIP = "pip install 'nvidia-modelopt[onnx]', best into an environment of its own: it pins older onnx and onnxruntime"


def convert_with_modelopt(
    model: onnx.ModelProto, low: str, *, keep_io_types: bool, keep: Sequence[str]
) -> onnx.ModelProto:
    """Convert with ``modelopt.onnx.autocast``, which picks the nodes by its own rules.

    Args:
        model: in float32.
        low: ``float16`` or ``bfloat16``.
        keep_io_types: whether inputs and outputs stay in float32.
        keep: names of nodes that stay in float32.

    Raises:
        PrecisionError: it is not installed, is another version than the one this knows, or fails.
    """
    try:
        autocast = importlib.import_module("modelopt.onnx.autocast")
        run = autocast.convert_to_mixed_precision
    except ImportError as error:
        raise PrecisionError("modelopt is not installed", hint=_PIP) from error
    except AttributeError as error:
        raise PrecisionError("this modelopt has no convert_to_mixed_precision", hint=_PIP) from error
    with tempfile.TemporaryDirectory(prefix="convbn-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        try:
            converted: onnx.ModelProto = run(
                onnx_path=str(path),
                low_precision_type={"float16": "fp16", "bfloat16": "bf16"}[low],
                nodes_to_exclude=[re.escape(name) for name in keep],  # it takes patterns
                keep_io_types=keep_io_types,
            )
        except Exception as error:  # a converter of many parts, each with errors of its own
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise PrecisionError(f"modelopt cannot convert the model ({text})") from error
    return converted
