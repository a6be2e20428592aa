"""The line with which NVIDIA's own program builds the same engine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.build.builder import Plan, Request
from convbn.export.engines.build.options import EngineOptions
from convbn.export.shapes import ShapeRange

__all__ = ["command_line"]

_COMPATIBILITY = {"ampere+": "ampere+", "same-compute-capability": "sameComputeCapability"}


def command_line(plan: Plan, request: Request, backend: Backend, *, engine: str) -> str:
    """For classic TensorRT that is ``trtexec``; TensorRT-RTX has ``tensorrt_rtx``, which loads its engines.

    Args:
        plan: what was built.
        request: from what.
        backend: by which.
        engine: path of the engine.
    """
    source = request.source
    parts = [
        backend.cli,
        f"--onnx={source.shown if source.has_file else 'MODEL.onnx'}",
        f"--saveEngine={engine}",
    ]
    if backend.cli == "trtexec":
        parts.append("--stronglyTyped")
    if not request.tf32:
        parts.append("--noTF32")
    parts += _options(request.options)
    if request.timings is not None:
        parts.append(f"--timingCacheFile={request.timings.path}")
    for index, profile in enumerate(plan.profiles):
        if len(plan.profiles) > 1:
            parts.append(f"--profile={index}")
        parts += _shapes(profile)
    parts.append("--profilingVerbosity=detailed")
    return shlex.join(parts)


def _options(options: EngineOptions) -> list[str]:
    parts = []
    if options.workspace is not None:
        parts.append(f"--memPoolSize=workspace:{options.workspace}B")
    if options.optimization_level is not None:
        parts.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.compute_capabilities == ("current",):
        parts.append("--useGpu")
    elif options.compute_capabilities:
        codes = ",".join(name.replace(".", "") for name in options.compute_capabilities)
        parts.append(f"--computeCapabilities={codes}")
    if options.hardware_compatibility is not None:
        parts.append(f"--hardwareCompatibilityLevel={_COMPATIBILITY[options.hardware_compatibility]}")
    for name, wanted in (
        ("--versionCompatible", options.version_compatible),
        ("--stripWeights", options.strip_weights),
        ("--refit", options.refit),
    ):
        if wanted:
            parts.append(name)
    return parts


def _shapes(profile: Mapping[str, ShapeRange]) -> list[str]:
    def one(option: str) -> str:
        dims = {name: "x".join(map(str, getattr(shapes, option))) for name, shapes in profile.items()}
        return f"--{option}Shapes=" + ",".join(f"{name}:{text}" for name, text in dims.items())

    return [one(option) for option in ("min", "opt", "max")]
