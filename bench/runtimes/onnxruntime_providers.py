"""onnxruntime's execution providers: whether one is there, and whether it did all of the work."""

from __future__ import annotations

from typing import Any

from convbn.bench.models.errors import RuntimeMissingError

__all__ = ["PROVIDERS", "import_onnxruntime", "require_provider"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_HINTS = {
    "cuda": "on a machine with an NVIDIA GPU: pip uninstall onnxruntime, pip install onnxruntime-gpu",
    "tensorrt": "on a machine with an NVIDIA GPU: pip uninstall onnxruntime, pip install onnxruntime-gpu tensorrt",
}
#: Arithmetic on shapes, which GPU providers leave to the CPU on purpose: it is a few integers.
_SHAPE_OPERATORS = frozenset(
    {
        *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Mul", "Range"),
        *("Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    }
)


def import_onnxruntime(variant: str) -> Any:
    """onnxruntime, if it has a provider.

    Raises:
        RuntimeMissingError: it or the provider is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError("onnxruntime is not installed", hint="pip install onnxruntime") from error
    if PROVIDERS[variant] not in onnxruntime.get_available_providers():
        raise RuntimeMissingError(
            f"this onnxruntime {onnxruntime.__version__} has no {PROVIDERS[variant]}",
            hint=_HINTS.get(variant),
        )
    return onnxruntime


def require_provider(session: Any, provider: str, name: str) -> None:
    """Refuse a session in which another provider than the one asked for does some of the work.

    Raises:
        RuntimeMissingError: it does, or this onnxruntime cannot say.
    """
    if provider not in session.get_providers():
        raise RuntimeMissingError(
            f"onnxruntime loaded the model without {provider}",
            source=name,
            hint="check the CUDA, cuDNN and TensorRT libraries that this onnxruntime needs",
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise RuntimeMissingError(
            "this onnxruntime cannot say which provider runs which node",
            source=name,
            hint="pip install --upgrade onnxruntime-gpu",
        )
    strays = _foreign_nodes(session, provider)
    if strays:
        raise RuntimeMissingError(
            f"{provider} leaves {len(strays)} nodes to another provider ({', '.join(sorted(set(strays))[:5])})",
            source=name,
            hint="measure it in a runtime that takes all of it",
        )


def _foreign_nodes(session: Any, provider: str) -> list[str]:
    """Operators that another provider runs, arithmetic on shapes left out."""
    return [
        str(node.op_type)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if node.op_type not in _SHAPE_OPERATORS
    ]
