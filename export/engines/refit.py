"""New weights in an engine that was built to take them: TensorRT's refit, without a build.

The engine must have been built with ``refit`` (or ``strip_weights``), from a model whose weights bear the names that
those of the new one bear; ``convbn export`` of the same architecture gives the same names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbn.errors import NotSupportedError
from convbn.export.engines.backends.logs import BuildLog, collect, logger_of
from convbn.export.engines.run.load import load_engine
from convbn.export.engines.sidecar import SCHEMA_VERSION
from convbn.export.files.sidecar import check_with_sidecar, write_with_sidecar

if TYPE_CHECKING:
    import onnx

__all__ = ["refit_engine"]

_NAMED = 5


def refit_engine(
    path: str | os.PathLike[str],
    model: onnx.ModelProto,
    out: str | os.PathLike[str],
    *,
    trust: bool,
    changes: Mapping[str, object],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Put the weights of a folded model into an engine, and write it with its sidecar.

    Args:
        path: of the engine, with its sidecar beside it.
        model: with the graph that the engine was built from, and new weights.
        out: where the engine goes; it may be `path` with `overwrite`.
        trust: see :func:`convbn.export.engines.run.load.load_engine`.
        changes: what the sidecar says otherwise than before, beside the hashes of engine and model.
        overwrite: whether existing files may be replaced.

    Returns:
        The new sidecar.

    Raises:
        NotSupportedError: the engine takes no new weights, or not these; nothing is written.
        ConvBNError: see :func:`convbn.export.engines.run.load.load_engine`.
    """
    check_with_sidecar(out, overwrite=overwrite)
    loaded = load_engine(path, trust=trust)
    trt, engine, data = loaded.trt, loaded.engine, model.SerializeToString()
    if loaded.sidecar is None:
        raise NotSupportedError(
            "has no sidecar, which says what it was built from", source=path, hint="build it again"
        )
    if not engine.refittable:
        hint = "build it with --refit"
        raise NotSupportedError("was not built to take new weights", source=path, hint=hint)
    with collect(trt) as log:
        refitter = trt.Refitter(engine, logger_of(trt))
        parser = trt.OnnxParserRefitter(refitter, logger_of(trt))
        if not parser.refit_from_bytes(data):
            raise _refused(path, "does not take the weights", _parser_errors(parser, log))
        missing = list(refitter.get_missing_weights())
        if missing:
            raise _refused(path, "needs weights that the model does not have", ", ".join(missing[:_NAMED]))
        if not refitter.refit_cuda_engine():
            raise _refused(path, "was not refitted", log.first_error())
        plan = bytes(_serialised(trt, engine))
    sidecar = {
        **loaded.sidecar,
        **changes,
        "schema_version": SCHEMA_VERSION,
        "engine": {"sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)},
        "onnx": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "file": None},
    }
    write_with_sidecar(plan, sidecar, out, overwrite=overwrite)
    return sidecar


def _serialised(trt: Any, engine: Any) -> Any:
    """The plan with its weights, which can be refitted again where this version offers that."""
    again = getattr(trt.SerializationFlag, "INCLUDE_REFIT", None)
    if again is None:
        return engine.serialize()
    config = engine.create_serialization_config()
    config.set_flag(again)
    return engine.serialize_with_config(config)


def _parser_errors(parser: Any, log: BuildLog) -> str | None:
    told = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    return "; ".join(told[:_NAMED]) or log.first_error()


def _refused(path: str | os.PathLike[str], cause: str, told: str | None) -> NotSupportedError:
    hint = "weights must be those of the same architecture; nothing was written"
    return NotSupportedError(f"{cause}: {told or 'TensorRT gives no reason'}", source=path, hint=hint)
