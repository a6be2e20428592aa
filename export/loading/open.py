"""Files opened as models, told by their content: ONNX, programs, checkpoints, engines, names of a hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from convbn.errors import NotSupportedError, UsageError
from convbn.export.checkpoints.hub import HUB
from convbn.export.files.sniff import ArtifactKind, sniff
from convbn.export.loading.checkpoints import open_checkpoint, open_hub, open_program
from convbn.export.loading.inputs import with_inputs
from convbn.export.loading.source_model import LoadOptions, SourceModel

__all__ = ["open_model_or_engine", "open_source", "source_of"]


_BUILT = (ArtifactKind.ENGINE, ArtifactKind.AOT_INDUCTOR, ArtifactKind.EXECUTORCH, ArtifactKind.ONNXRUNTIME)


def open_source(path: str, options: LoadOptions, *, light: bool = False, hashed: bool = True) -> SourceModel:
    """Open ``path``, telling its kind by its content; ``hf-hub:ORG/NAME`` is opened as its weights.

    Args:
        path: the file.
        options: how to make a model of it.
        light: leave an ONNX model's large weights in the files they lie in.
        hashed: hash the file; only an ONNX model can go without.

    Raises:
        ConvBNError: it cannot be read, is of a kind that is not supported here, or options are missing.
    """
    source = _opened(path, options, light=light, hashed=hashed)
    return source if options.inputs is None else with_inputs(source, options.inputs, options.preprocess)


def _opened(path: str, options: LoadOptions, *, light: bool, hashed: bool) -> SourceModel:
    if path.startswith(HUB):
        return open_hub(path, options)
    kind = sniff(path, max_pickle_mib=options.limits.pickle_mib)
    if kind is ArtifactKind.ONNX:
        return _open_onnx(path, options, light=light, hashed=hashed)
    if kind is ArtifactKind.PT2:
        return open_program(path, options)
    if kind in _BUILT:
        article = "a" if kind is ArtifactKind.ENGINE else "an"
        raise NotSupportedError(
            f"is {article} {kind.value}, which cannot be read back into a model", source=path
        )
    return open_checkpoint(path, kind, options)


def open_model_or_engine(
    path: str, options: LoadOptions, trust_engine: bool, *, light: bool = False, hashed: bool = True
) -> SourceModel:
    """:func:`open_source` for whatever can be compared and measured, engines among it.

    Raises:
        UntrustedEngineError: it is an engine, and `trust_engine` is false.
        ConvBNError: see :func:`open_source`.
    """
    if path.startswith(HUB) or sniff(path) is not ArtifactKind.ENGINE:
        return open_source(path, options, light=light, hashed=hashed)
    from convbn.export.engines.run.load import EngineFile, read_header, require_trust

    require_trust(path, trust_engine)
    file = EngineFile(Path(path), trust_engine)
    return SourceModel(None, path=path, engines={read_header(path).runs_in: file})


def source_of(model: Any, options: LoadOptions | None = None) -> SourceModel:
    """A model in memory as it is, or the one that lies at a path.

    Raises:
        UsageError: options of a file, and this is none.
        ConvBNError: see :func:`open_source`.
    """
    options = options or LoadOptions()
    if isinstance(model, str | os.PathLike):
        return open_source(os.fspath(model), options)
    if options.arch is not None or options.trust:
        raise UsageError("arch and trust are for files, and this is a model")
    return SourceModel(model)


def _open_onnx(path: str, options: LoadOptions, *, light: bool, hashed: bool) -> SourceModel:
    from convbn.export.onnx_io.read import open_model, read_model

    if options.arch is not None:
        raise UsageError("--arch is for checkpoints, and this is an ONNX file", source=path)
    loaded = open_model(path, hashed=hashed) if light else read_model(path, hashed=hashed)
    inputs = [v.name for v in loaded.model.graph.input]
    stored = {t.name for t in loaded.model.graph.initializer}
    shapes = _named_shapes(options, [name for name in inputs if name not in stored])
    opened = loaded if light else None
    return SourceModel(
        loaded.model, input_shapes=shapes or None, path=path, sha256=loaded.sha256, opened=opened
    )


def _named_shapes(options: LoadOptions, inputs: list[str]) -> dict[str, tuple[int, ...]]:
    from convbn.export.shapes import parse_shape

    shapes: dict[str, tuple[int, ...]] = {}
    for text in options.input_shapes:
        name, shape = parse_shape(text)
        if name is None:
            if len(inputs) != 1:
                raise UsageError(
                    f"--input-shape {text} names no input", hint=f"the inputs are {', '.join(inputs)}"
                )
            name = inputs[0]
        if name not in inputs:
            raise UsageError(f"the model has no input {name!r}", hint=f"the inputs are {', '.join(inputs)}")
        shapes[name] = shape
    return shapes
