"""ONNX in, engine and sidecar out."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.export.engines.backends.caches import cache_file
from convbn.export.engines.backends.gpus import list_gpus
from convbn.export.engines.backends.registry import choose_backend
from convbn.export.engines.build.builder import Progress, Request, build_plan
from convbn.export.engines.build.configuration import require_honoured
from convbn.export.engines.build.network import network_summary
from convbn.export.engines.build.options import EngineOptions
from convbn.export.engines.build.profiles import check_profiles, contradicting_names
from convbn.export.engines.build.source import read_source
from convbn.export.engines.errors import PrecisionError
from convbn.export.engines.sidecar import describe
from convbn.export.files.sidecar import check_with_sidecar, sidecar_path, write_with_sidecar
from convbn.export.precision.carried import contents_of, precision_of, refuse_unfolded_quantisation
from convbn.export.precision.precisions import AS_IS, precision_named
from convbn.export.shapes import Profile

if TYPE_CHECKING:
    import onnx

__all__ = ["EngineArtifact", "build_engine"]


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
    shapes: Profile | Sequence[Profile] | None = None,
    options: EngineOptions | None = None,
    unfused_model: onnx.ModelProto | str | os.PathLike[str] | None = None,
    fold_summary: Mapping[str, object] | None = None,
    conversion: Mapping[str, object] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EngineArtifact:
    """Build a TensorRT engine and write it with its sidecar.

    Args:
        model: a model, or the path of one.
        out: where the engine goes; the sidecar goes to ``<out>.json``.
        backend: ``auto``, ``tensorrt`` or ``tensorrt-rtx``.
        precision: ``as-is`` computes in the types that the model carries, as every strongly typed engine
            does; any other refuses a model that carries something else.
        tf32: whether float32 convolutions may round their inputs to TF32 on the GPU.
        shapes: range of shapes of each dynamic input, by name; None names the only input. Several such
            mappings are several optimisation profiles.
        options: what else is wanted of the build; by default TensorRT decides.
        unfused_model: the model before its BatchNorms were folded; its Scale layers are counted.
        fold_summary: recorded in the sidecar as it is; JSON values.
        conversion: likewise, how the model came to its precision (:mod:`convbn.export.precision`).
        overwrite: whether existing files may be replaced.
        progress: called in another thread with phase, steps done and steps in all; False cancels.

    Returns:
        What was written. After any error nothing was.

    Raises:
        UsageError: an option value is unknown, or the shapes do not fit (ShapeProfileError).
        PrecisionError: the model does not have the precision.
        QuantisationOrderError: it was quantised before its BatchNorms were folded.
        UnsupportedOptionError: the backend would ignore an option that is given.
        BackendNotInstalledError: see :func:`convbn.export.engines.backends.registry.choose_backend`.
        NoGpuError: likewise.
        OnnxParseError: TensorRT does not accept the model.
        UnsupportedOpError: it does not implement an operator.
        BuildError: it failed.
        BuildCancelledError: `progress` answered False.
        FileAccessError: a file cannot be read or written.
    """
    precision_named(precision)
    options = options or EngineOptions()
    check_with_sidecar(out, overwrite=overwrite)
    chosen = choose_backend(backend)
    gpu = next(iter(list_gpus()), None)
    require_honoured(chosen, options, gpu=gpu is not None)
    trt = chosen.load()
    source = read_source(model)
    if precision == "int8":
        refuse_unfolded_quantisation(source.model)
    held = contents_of(source.model)
    carried = precision_of(held)
    converted = conversion is not None and conversion.get("precision") == precision
    if precision not in (AS_IS, carried) and not converted:
        if precision == "fp32":
            cause = f"precision fp32 was asked for, but the model carries {carried}"
            hint = "use precision as-is or export it in float32"
            raise PrecisionError(cause, source=source.shown, hint=hint)
        hint = "convert it first, see convbn.export.precision.convert"
        raise PrecisionError(f"the model does not carry {precision}", source=source.shown, hint=hint)
    before = None if unfused_model is None else network_summary(unfused_model, chosen.name)
    timings = None
    if options.timing_cache is not None and gpu is not None:
        timings = cache_file(options.timing_cache, "timing", str(trt.__version__), gpu)
    profiles = (shapes,) if isinstance(shapes, Mapping) else tuple(shapes or ())
    check_profiles(source.model, profiles)
    alike = contradicting_names(source.model, profiles)
    if alike:
        source = source.without_names(alike)
    request = Request(source, chosen.name, tf32, profiles, options, timings)
    start = time.perf_counter()
    plan = build_plan(trt, request, progress)
    seconds = time.perf_counter() - start
    warnings = list(plan.warnings)
    for name in sorted(alike):
        warnings.append(f"Dimensions named {name!r} differ in the profile: each is taken for one of its own.")
    if "float64" in held.types:
        warnings.append("The model carries float64, which TensorRT computes in float32.")
    if chosen.name == "tensorrt-rtx" and carried == "int8":
        warnings.append("TensorRT-RTX documents int8 for weights alone; fp16 may be the faster engine.")
    if gpu is not None and not chosen.serves(gpu):
        warnings.append(f"Engines of {chosen.name} do not run on the GPU here, {gpu}.")
    digest, version = hashlib.sha256(plan.data).hexdigest(), str(trt.__version__)
    sidecar = describe(plan, request, chosen, os.fspath(out)) | {
        "engine": {"sha256": digest, "bytes": len(plan.data)},
        "backend": {"name": chosen.name, "version": version},
        "device": "built without a GPU" if gpu is None else gpu.to_dict(),
        "precision": precision,
        "scale_layers": {
            "before": None if before is None else before.get("SCALE", 0),
            "after": plan.layers["SCALE"],
        },
        "fold_summary": None if fold_summary is None else dict(fold_summary),
        "conversion": None if conversion is None else dict(conversion),
        "build_seconds": round(seconds, 3),
        "warnings": warnings,
    }
    write_with_sidecar(plan.data, sidecar, out, overwrite=overwrite)
    return EngineArtifact(
        path=Path(out),
        sidecar_path=sidecar_path(out),
        sha256=digest,
        size=len(plan.data),
        backend=chosen.name,
        backend_version=version,
        sidecar=sidecar,
    )
