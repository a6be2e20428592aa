"""The JSON file beside an engine, which says what the engine is made of.

The engine file holds TensorRT's plan and nothing else, so that NVIDIA's own tools load it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from convbn.common.encoding import encoded
from convbn.common.text import shape_text
from convbn.errors import BadInputError, FileAccessError
from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.build.builder import Plan, Request
from convbn.export.engines.errors import EngineMismatchError
from convbn.export.files.atomic import file_access, sha256_file
from convbn.export.files.sidecar import sidecar_path, tool_versions

__all__ = [
    "SCHEMA_VERSION",
    "describe",
    "read_sidecar",
]

SCHEMA_VERSION = "1"


def read_sidecar(engine: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the sidecar of an engine and hold the engine's hash against it.

    Args:
        engine: path of the engine.

    Returns:
        The sidecar's content.

    Raises:
        FileAccessError: one of the two files cannot be read.
        BadInputError: the sidecar is no sidecar, or of a later schema.
        EngineMismatchError: the engine is not the one that the sidecar describes.
    """
    path = sidecar_path(engine)
    if not path.exists():
        raise FileAccessError("has no sidecar", source=engine, hint=f"{path.name} belongs beside it")
    try:
        with file_access(path):
            content = json.loads(path.read_text(encoding="utf-8"))
        schema, claimed = content["schema_version"], content["engine"]["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError("is not the sidecar of an engine", source=path) from error
    if schema != SCHEMA_VERSION:
        raise BadInputError(
            f"has schema version {schema!r}, this convbn reads {SCHEMA_VERSION!r}", source=path
        )
    if sha256_file(engine) != claimed:
        hint = "build it again"
        raise EngineMismatchError(f"is not the engine that {path.name} describes", source=engine, hint=hint)
    result: dict[str, Any] = content
    return result


def describe(plan: Plan, request: Request, backend: Backend, engine: str) -> dict[str, object]:
    """What a build says of an engine; ``engine-sidecar.schema.json`` asks for more.

    Args:
        plan: what was built.
        request: from what.
        backend: by which.
        engine: path of the engine.
    """
    source = request.source
    return {
        "schema_version": SCHEMA_VERSION,
        "tools": tool_versions(),
        "onnx": {
            "sha256": source.sha256,
            "bytes": source.size,
            "file": source.shown if source.has_file else None,
        },
        "tf32": request.tf32,
        "profiles": encoded(plan.profiles),
        "options": request.options.to_dict(),
        "inputs": encoded(plan.inputs),
        "outputs": encoded(plan.outputs),
        "flags": list(plan.flags),
        "layers": dict(plan.layers),
        "command": _command(plan, request, backend, engine),
    }


_COMPATIBILITY = {"ampere+": "ampere+", "same-compute-capability": "sameComputeCapability"}


def _capabilities(names: tuple[str, ...]) -> str:
    if names == ("current",):
        return "--useGpu"
    return f"--computeCapabilities={','.join(name.replace('.', '') for name in names)}"


#: Options of a build as NVIDIA's own programs take them.
_OPTIONS: Mapping[str, Callable[[Any], str]] = {
    "workspace": "--memPoolSize=workspace:{}B".format,
    "optimization_level": "--builderOptimizationLevel={}".format,
    "compute_capabilities": _capabilities,
    "hardware_compatibility": lambda level: f"--hardwareCompatibilityLevel={_COMPATIBILITY[level]}",
    "version_compatible": lambda wanted: "--versionCompatible",
    "strip_weights": lambda wanted: "--stripWeights",
    "refit": lambda wanted: "--refit",
}


def _command(plan: Plan, request: Request, backend: Backend, engine: str) -> str:
    """The line with which NVIDIA's program builds the same: ``trtexec``, or TensorRT-RTX's ``tensorrt_rtx``."""
    source, options = request.source, request.options
    parts = [
        backend.cli,
        f"--onnx={source.shown if source.has_file else 'MODEL.onnx'}",
        f"--saveEngine={engine}",
    ]
    if backend.cli == "trtexec":
        parts.append("--stronglyTyped")
    if not request.tf32:
        parts.append("--noTF32")
    parts += [_OPTIONS[name](getattr(options, name)) for name in options.given() if name in _OPTIONS]
    if request.timings is not None:
        parts.append(f"--timingCacheFile={request.timings.path}")
    for index, profile in enumerate(plan.profiles):
        if len(plan.profiles) > 1:
            parts.append(f"--profile={index}")
        for bound in ("min", "opt", "max"):
            texts = (f"{name}:{shape_text(getattr(shapes, bound))}" for name, shapes in profile.items())
            parts.append(f"--{bound}Shapes={','.join(texts)}")
    return shlex.join([*parts, "--profilingVerbosity=detailed"])
