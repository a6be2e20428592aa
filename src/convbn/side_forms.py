"""A side in another form: another precision, or an engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.errors import ConvBNError, NotSupportedError
from convbn.export.precision.precisions import AS_IS, PRECISIONS
from convbn.sides import Subject, loaded_model

if TYPE_CHECKING:
    from convbn.bench.runtimes.base import Side

__all__ = ["converted", "with_engines"]

#: Samples that int8 ranges are found on; random ones say little about a trained model, however many.
_CALIBRATION_SAMPLES = 4


def converted(side: Side, precision: str, subject: Subject, seed: int) -> Side:
    """A side in another precision: the ONNX form by convbn.export.precision, the module by its own cast.

    int8 ranges come from seeded random inputs: enough to measure the time, not to judge the accuracy.

    Args:
        side: the model.
        precision: by name; ``as-is`` for the model as it is.
        subject: where the shapes of its inputs are.
        seed: of the random inputs.

    Raises:
        NotSupportedError: it cannot be converted.
    """
    if precision == AS_IS:
        return side
    if side.onnx is None and side.module is None:
        raise NotSupportedError("--precision is for models, and this is an engine", source=side.path)
    onnx_form = None if side.onnx is None else _converted_onnx(side.onnx, precision, subject, seed)
    module = None if side.module is None else _converted_module(side, precision)
    examples = side.example_inputs
    if module is not None and examples is not None:
        examples = tuple(_cast(value, precision) for value in examples)
    return replace(side, onnx=onnx_form, module=module, example_inputs=examples)


def with_engines(side: Side, runtimes: Sequence[str] | None, subject: Subject, folder: Path) -> Side:
    """The side with an engine for each TensorRT among the runtimes that can run here.

    Args:
        side: the model.
        runtimes: names.
        subject: where the shapes of its inputs are.
        folder: where the engines go.
    """
    from convbn.bench.runtimes.registry import form_of, load_library
    from convbn.export.engines.run.load import EngineFile

    wanted = {name.partition("@")[0] for name in runtimes or () if form_of(name) == "engine"}
    engines, seconds = dict(side.engines), dict(side.build_seconds)
    for name in sorted(wanted - set(engines)):
        start = time.perf_counter()
        try:
            load_library(name)
            if side.onnx is not None:
                engines[name] = EngineFile(_engine(side.onnx, name, subject, folder), trust=True)
        except ConvBNError as error:
            engines[name] = error
        seconds[name] = time.perf_counter() - start
    return replace(side, engines=engines, build_seconds=seconds)


def _engine(model: Any, backend: str, subject: Subject, folder: Path) -> Path:
    from convbn.export.engines.build.build import build_engine
    from convbn.export.shapes import ShapeRange

    path = folder / f"{len(list(folder.iterdir()))}.engine"
    shapes: dict[str | None, ShapeRange] = {
        name: ShapeRange(shape, shape, shape) for name, shape in (subject.input_shapes or {}).items()
    }
    build_engine(model, path, backend=backend, shapes=shapes or None)
    return path


def _converted_onnx(model: Any, precision: str, subject: Subject, seed: int) -> Any:
    from convbn.export.precision.convert import convert

    loaded = loaded_model(model)
    needed = PRECISIONS[precision].calibration == "required"
    calibration = _random_calibration(loaded, subject, seed) if needed else None
    return convert(loaded, precision, calibration=calibration).model


def _random_calibration(model: Any, subject: Subject, seed: int) -> Any:
    from convbn.bench.models.feeds import model_feeds
    from convbn.export.precision.int8.calibration import Calibration

    feeds = model_feeds(
        [model],
        shapes=subject.input_shapes,
        seed=seed,
        samples=_CALIBRATION_SAMPLES,
        example_inputs=subject.example_inputs,
    )
    return Calibration("seeded random inputs", [partial(dict, sample) for sample in feeds])


def _converted_module(side: Side, precision: str) -> Any:
    """A cast copy; None for int8, which eager PyTorch has no kernels for, and for exported programs."""
    import copy

    import torch

    dtype = PRECISIONS[precision].dtype
    if dtype is None or isinstance(side.module, torch.export.ExportedProgram):
        return None
    return copy.deepcopy(side.module).to(getattr(torch, dtype))  # type: ignore[union-attr]  # a module


def _cast(value: Any, precision: str) -> Any:
    import torch

    dtype = PRECISIONS[precision].dtype
    return value.to(getattr(torch, dtype or "")) if value.is_floating_point() else value
