"""Folds BatchNorm into the layers around it, proves that nothing changed, builds engines, benchmarks.

>>> model, report = convbn.fuse(model)          # a torch module, an ExportedProgram, an ONNX model or path

Importing convbn imports no framework; each function imports what it needs when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convbn.errors import (
    BadInputError,
    CheckFailedError,
    ConvBNError,
    FileAccessError,
    NotSupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from convbn.api import FuseResult, bench, build_engine, export_onnx, fuse, inspect, verify
    from convbn.bench.protocol import ProtocolOptions as BenchOptions
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report
else:
    # Both are packages that can be called (docs/decisions/0002-callable-rooms.md).
    from convbn import bench, fuse

__all__ = [
    "BadInputError",
    "BenchOptions",
    "CheckFailedError",
    "ConvBNError",
    "FileAccessError",
    "FuseOptions",
    "FuseResult",
    "NotSupportedError",
    "Report",
    "UsageError",
    "bench",
    "build_engine",
    "export_onnx",
    "fuse",
    "inspect",
    "verify",
]

__version__ = "0.1.0"

_LAZY = {
    "BenchOptions": ("convbn.bench.protocol", "ProtocolOptions"),
    "FuseOptions": ("convbn.fuse.options", "FuseOptions"),
    "FuseResult": ("convbn.api", "FuseResult"),
    "Report": ("convbn.fuse.report", "Report"),
    "build_engine": ("convbn.api", "build_engine"),
    "export_onnx": ("convbn.api", "export_onnx"),
    "inspect": ("convbn.api", "inspect"),
    "verify": ("convbn.api", "verify"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'convbn' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
