"""EPContext models: ONNX models in which an execution provider of onnxruntime has put what it compiled.

https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html: TensorRT, TensorRT-RTX, QNN, OpenVINO and
VitisAI write their compiled blobs into EPContext nodes, and a session loads them without compiling again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from convbn.common.text import one_line
from convbn.errors import NotSupportedError
from convbn.export.packages.onnxruntime_model import import_onnxruntime
from convbn.export.packages.package import LoadedPackage, Package, Packed

__all__ = ["COMPILING", "PACKAGE"]

COMPILING: Final = (
    "NvTensorRTRTXExecutionProvider",
    "TensorrtExecutionProvider",
    "QNNExecutionProvider",
    "OpenVINOExecutionProvider",
    "VitisAIExecutionProvider",
)
"""Providers that write EPContext nodes; the first that is here is taken."""


def require() -> None:
    """Find a provider that compiles.

    Raises:
        NotSupportedError: onnxruntime has none, or is too old.
    """
    _provider()


def _provider() -> str:
    onnxruntime = import_onnxruntime()
    here = onnxruntime.get_available_providers()
    found = next((name for name in COMPILING if name in here), None)
    if found is None:
        known = ", ".join(name.removesuffix("ExecutionProvider") for name in here)
        raise NotSupportedError(
            f"no execution provider of onnxruntime here compiles models ahead of time (there are: {known})",
            hint="install an onnxruntime with TensorRT, QNN or OpenVINO, as onnxruntime-gpu or onnxruntime-openvino is",
        )
    if not hasattr(onnxruntime, "ModelCompiler"):
        raise NotSupportedError(
            f"onnxruntime {onnxruntime.__version__} has no ModelCompiler",
            hint="install onnxruntime 1.23 or later",
        )
    return found


def pack(model: Any, examples: Sequence[Any], path: Path) -> Packed:
    """Let the provider compile a model.

    Raises:
        NotSupportedError: there is none, or it compiles nothing of the model.
    """
    onnxruntime, provider = import_onnxruntime(), _provider()
    options = onnxruntime.SessionOptions()
    options.add_provider(provider, {})
    flags = onnxruntime.OrtCompileApiFlags.ERROR_IF_NO_NODES_COMPILED
    try:
        compiler = onnxruntime.ModelCompiler(
            options, model.SerializeToString(), embed_compiled_data_into_model=True, flags=flags
        )
        compiler.compile_to_file(str(path))
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        cause = f"{provider} cannot compile the model ({one_line(error, 300)})"
        raise NotSupportedError(cause, hint="write an .ort or .onnx file instead") from error

    def load() -> LoadedPackage:
        session = onnxruntime.InferenceSession(str(path), providers=[provider])
        return LoadedPackage(f"onnxruntime, {provider}", session=session)

    return Packed(path, load, {"provider": provider})


PACKAGE = Package(("onnxruntime",), require, pack)
