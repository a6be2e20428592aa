"""The JSON file beside an engine, which says what the engine is made of.

The engine file holds TensorRT's plan and nothing else, so that NVIDIA's own tools load it.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from convbn.common.encoding import encoded
from convbn.common.text import shape_text
from convbn.errors import BadInputError, FileAccessError
from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.build.builder import Plan, Request
from convbn.export.engines.errors import EngineMismatchError
from convbn.export.files.atomic import check_target, file_access, sha256_file, write_atomically

__all__ = [
    "SCHEMA_VERSION",
    "check_engine_target",
    "describe",
    "read_sidecar",
    "sidecar_path",
    "tool_versions",
    "write_engine",
]

SCHEMA_VERSION = "1"


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    """``model.engine`` has its sidecar in ``model.engine.json``."""
    path = Path(engine)
    return path.with_name(path.name + ".json")


def write_engine(
    data: bytes, sidecar: Mapping[str, object], path: str | os.PathLike[str], *, overwrite: bool
) -> None:
    """Write an engine and its sidecar.

    The engine's bytes are on the disk, under a temporary name, before the sidecar appears; the engine
    gets its name last. A full disk therefore leaves neither. A kill between the two leaves a sidecar
    whose SHA-256 fits no engine, or not the old one that is still there, which :func:`read_sidecar`
    tells; the other order could leave a new engine under the claims of an old sidecar, or under none.
    Where the engine cannot get its name, or a Ctrl-C comes there, the sidecar is what it was before.

    Args:
        data: the plan.
        sidecar: what its schema asks for.
        path: of the engine.
        overwrite: whether existing files may be replaced.

    Raises:
        FileAccessError: one of the two cannot be written.
    """
    text = json.dumps(sidecar, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        replace = overwrite or _orphaned(Path(path), beside)
        write_atomically(beside, text.encode("utf-8", "surrogatepass"), overwrite=replace)

    beside = sidecar_path(path)
    before = beside.read_bytes() if beside.is_file() else None
    try:
        write_atomically(path, write, overwrite=overwrite)
    except BaseException:
        if before is not None:
            write_atomically(beside, before, overwrite=True)
        else:
            beside.unlink(missing_ok=True)
        raise


def check_engine_target(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse early what :func:`write_engine` would refuse late.

    A sidecar whose engine is missing, which a kill can leave, is in nobody's way.

    Raises:
        FileAccessError: see :func:`convbn.export.files.atomic.check_target`.
    """
    engine = check_target(path, overwrite=overwrite)
    check_target(sidecar_path(path), overwrite=overwrite or _orphaned(engine, sidecar_path(path)))


def _orphaned(engine: Path, sidecar: Path) -> bool:
    if engine.exists():
        return False
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"schema_version", "engine", "scale_layers"} <= content.keys()


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


def tool_versions() -> dict[str, str | None]:
    """Versions of what took part, None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("convbn", "onnx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


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
