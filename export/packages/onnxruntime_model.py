"""ONNX models as onnxruntime has rewritten them: optimised once, offline, in its own format.

Optimised at its level `extended`. The level above it lays tensors out for the CPU at hand, and such a file would be
slow or refused on another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convbn.common.text import one_line
from convbn.errors import NotSupportedError
from convbn.export.packages.package import LoadedPackage, Package, Packed

__all__ = ["PACKAGE", "import_onnxruntime", "optimised"]

_ERRORS_ONLY = 3


def import_onnxruntime() -> Any:
    """Import it.

    Raises:
        NotSupportedError: it is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise NotSupportedError("onnxruntime is not installed", hint="pip install onnxruntime") from error
    return onnxruntime


def require() -> None:
    """Find onnxruntime."""
    import_onnxruntime()


def optimised(model: Any, path: Path, kind: str) -> Packed:
    """Let onnxruntime optimise a model and write it.

    Args:
        model: left as it is.
        path: of the file.
        kind: ``ORT`` or ``ONNX``.

    Raises:
        NotSupportedError: onnxruntime refuses it.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", kind)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        cause = f"onnxruntime cannot optimise the model ({one_line(error, 300)})"
        raise NotSupportedError(cause, hint="write an .onnx file instead") from error

    def load() -> LoadedPackage:
        again = onnxruntime.SessionOptions()
        again.log_severity_level = _ERRORS_ONLY
        again.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        again.add_session_config_entry("session.load_model_format", kind)
        session = onnxruntime.InferenceSession(str(path), again, providers=["CPUExecutionProvider"])
        return LoadedPackage("onnxruntime-cpu", session=session)

    return Packed(path, load, {"optimisation": "extended"})


def pack(model: Any, examples: Sequence[Any], path: Path) -> Packed:
    """See :func:`optimised`."""
    return optimised(model, path, "ORT")


PACKAGE = Package(("onnxruntime",), require, pack)
