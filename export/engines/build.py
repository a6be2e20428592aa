"""ONNX in, engine and sidecar out."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.errors import UsageError
from convbn.export.engines.builder import build_plan
from convbn.export.engines.errors import PrecisionError
from convbn.export.engines.gpus import list_gpus
from convbn.export.engines.monitor import Progress
from convbn.export.engines.network import network_summary
from convbn.export.engines.registry import choose_backend
from convbn.export.engines.sidecar import describe, sidecar_path, write_engine
from convbn.export.engines.source import element_types, read_source, require_fp32
from convbn.export.files import check_target
from convbn.export.shapes import ShapeRange

if TYPE_CHECKING:
    import onnx

__all__ = ["EngineArtifact", "build_engine"]

_PRECISIONS = ("as-is", "fp32")
_LATER = ("fp16", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class EngineArtifact:
    """An engine on disk.

    Attributes:
        path: of the engine.
        sidecar_path: of the JSON file beside it.
        sha256: of the engine.
        size: of the engine, bytes.
        backend: that built it.
        backend_version: its version.
        sidecar: the content of the JSON file.
    """

    path: Path
    sidecar_path: Path
    sha256: str
    size: int
    backend: str
    backend_version: str
    sidecar: Mapping[str, object]


def build_engine(
    model: onnx.ModelProto | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backend: str = "auto",
    precision: str = "as-is",
    tf32: bool = True,
    shapes: Mapping[str | None, ShapeRange] | None = None,
    unfused_model: onnx.ModelProto | str | os.PathLike[str] | None = None,
    fold_summary: Mapping[str, object] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EngineArtifact:
    """Build a TensorRT engine and write it with its sidecar.

    Args:
        model: a model, or the path of one.
        out: where the engine goes; the sidecar goes to ``<out>.json``.
        backend: ``auto``, ``tensorrt`` or ``tensorrt-rtx``.
        precision: ``as-is`` computes in the types that the model carries; ``fp32`` moreover refuses a
            model that carries lower ones.
        tf32: whether float32 convolutions may round their inputs to TF32 on the GPU.
        shapes: range of shapes of each dynamic input, by name; None names the only input.
        unfused_model: the model before its BatchNorms were folded; its Scale layers are counted.
        fold_summary: recorded in the sidecar as it is; JSON values.
        overwrite: whether existing files may be replaced.
        progress: called in another thread with phase, steps done and steps in all; False cancels.

    Returns:
        What was written. After any error nothing was.

    Raises:
        UsageError: an option value is unknown, or the shapes do not fit (ShapeProfileError).
        PrecisionError: the precision is not built yet, or the model does not have it.
        BackendNotInstalledError: see :func:`convbn.export.engines.registry.choose_backend`.
        NoGpuError: likewise.
        OnnxParseError: TensorRT does not accept the model.
        UnsupportedOpError: it does not implement an operator.
        BuildError: it failed.
        BuildCancelledError: `progress` answered False.
        FileAccessError: a file cannot be read or written.
    """
    if precision in _LATER:
        hint = "export the model in it and use precision as-is"
        raise PrecisionError(f"precision {precision} is not built yet", hint=hint)
    if precision not in _PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", hint=f"choose {' or '.join(_PRECISIONS)}")
    for target in (out, sidecar_path(out)):
        check_target(target, overwrite=overwrite)
    chosen = choose_backend(backend)
    trt = chosen.load()
    source = read_source(model)
    if precision == "fp32":
        require_fp32(source)
    gpu = next(iter(list_gpus()), None)
    before = None if unfused_model is None else network_summary(unfused_model, chosen.name)
    start = time.perf_counter()
    plan = build_plan(trt, source, tf32=tf32, shapes=shapes, progress=progress)
    seconds = time.perf_counter() - start
    warnings = list(plan.warnings)
    if "float64" in element_types(source.model):
        warnings.append("The model carries float64, which TensorRT computes in float32.")
    if gpu is not None and not chosen.serves(gpu):
        warnings.append(f"Engines of {chosen.name} do not run on the GPU here, {gpu}.")
    sidecar = describe(
        plan,
        source,
        chosen,
        backend_version=str(trt.__version__),
        gpu=gpu,
        engine=os.fspath(out),
        precision=precision,
        tf32=tf32,
        before=before,
        fold_summary=fold_summary,
        build_seconds=seconds,
        warnings=warnings,
    )
    digest = hashlib.sha256(plan.data).hexdigest()
    sidecar["engine"] = {"sha256": digest, "bytes": len(plan.data)}
    write_engine(plan.data, sidecar, out, overwrite=overwrite)
    return EngineArtifact(
        path=Path(out),
        sidecar_path=sidecar_path(out),
        sha256=digest,
        size=len(plan.data),
        backend=chosen.name,
        backend_version=str(trt.__version__),
        sidecar=sidecar,
    )
