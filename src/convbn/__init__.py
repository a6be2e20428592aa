"""Folds BatchNorm into the layers around it, proves that nothing changed, builds engines, benchmarks.

>>> model, report = convbn.fuse(model)          # a torch module, an ExportedProgram, an ONNX model or path

Importing convbn imports no framework; each function imports what it needs when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convbn.common import __version__ as __version__
from convbn.errors import (
    BadInputError,
    CheckFailedError,
    ConvBNError,
    FileAccessError,
    NotSupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from convbn.api import (
        FuseResult,
        bench,
        fuse,
        inspect,
        load_fused,
        save_fused,
    )
    from convbn.bench.cases.study import Grid as BenchGrid
    from convbn.bench.gates.check import gates
    from convbn.bench.measure.options import ProtocolOptions as BenchOptions
    from convbn.export.engines.build.options import EngineOptions
    from convbn.export.engines.run.inspect import inspect_engine
    from convbn.export.engines.run.load import EngineFile
    from convbn.export.engines.run.runner import EngineRunner
    from convbn.exporting import build_engine, export_onnx
    from convbn.fuse.frontends.torch.edit.folded import is_folded
    from convbn.fuse.frontends.torch.modules.custom_batchnorms import register_batchnorm
    from convbn.fuse.frontends.torch.modules.registered_convs import register_conv
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report
    from convbn.onnx_pass import fuse_file
    from convbn.proof import compare_layers, verify
else:
    from convbn import bench, fuse
    from convbn.callable_room import CallableRoom

    bench.__class__ = fuse.__class__ = CallableRoom

__all__ = [
    "BadInputError",
    "BenchGrid",
    "BenchOptions",
    "CheckFailedError",
    "ConvBNError",
    "EngineFile",
    "EngineOptions",
    "EngineRunner",
    "FileAccessError",
    "FuseOptions",
    "FuseResult",
    "NotSupportedError",
    "Report",
    "UsageError",
    "bench",
    "build_engine",
    "compare_layers",
    "export_onnx",
    "fuse",
    "fuse_file",
    "gates",
    "inspect",
    "inspect_engine",
    "is_folded",
    "load_fused",
    "register_batchnorm",
    "register_conv",
    "save_fused",
    "verify",
]

_LAZY = {
    "BenchGrid": ("convbn.bench.cases.study", "Grid"),
    "BenchOptions": ("convbn.bench.measure.options", "ProtocolOptions"),
    "EngineOptions": ("convbn.export.engines.build.options", "EngineOptions"),
    "EngineFile": ("convbn.export.engines.run.load", "EngineFile"),
    "EngineRunner": ("convbn.export.engines.run.runner", "EngineRunner"),
    "FuseOptions": ("convbn.fuse.options", "FuseOptions"),
    "FuseResult": ("convbn.api", "FuseResult"),
    "Report": ("convbn.fuse.report", "Report"),
    "build_engine": ("convbn.exporting", "build_engine"),
    "compare_layers": ("convbn.proof", "compare_layers"),
    "export_onnx": ("convbn.exporting", "export_onnx"),
    "fuse_file": ("convbn.onnx_pass", "fuse_file"),
    "gates": ("convbn.bench.gates.check", "gates"),
    "inspect": ("convbn.api", "inspect"),
    "inspect_engine": ("convbn.export.engines.run.inspect", "inspect_engine"),
    "is_folded": ("convbn.fuse.frontends.torch.edit.folded", "is_folded"),
    "load_fused": ("convbn.api", "load_fused"),
    "register_batchnorm": ("convbn.fuse.frontends.torch.modules.custom_batchnorms", "register_batchnorm"),
    "register_conv": ("convbn.fuse.frontends.torch.modules.registered_convs", "register_conv"),
    "save_fused": ("convbn.api", "save_fused"),
    "verify": ("convbn.proof", "verify"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'convbn' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    value = getattr(import_module(module), attribute)
    if callable(value) and not isinstance(value, type):
        from convbn.common.public import public

        value = public(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
