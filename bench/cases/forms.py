"""A variant in another form: another precision, or an engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.bench.cases.variants import loaded_onnx
from convbn.bench.runtimes.base import Variant
from convbn.errors import ConvBNError, NotSupportedError
from convbn.export.loading.source_model import SourceModel
from convbn.export.precision.precisions import AS_IS, PRECISIONS

if TYPE_CHECKING:
    from convbn.export.precision.int8.samples import Calibration

__all__ = ["in_precision", "random_calibration", "with_engines"]

#: Samples that int8 ranges are found on; random ones say little about a trained model, however many.
_CALIBRATION_SAMPLES = 4


def in_precision(variant: Variant, precision: str, source: SourceModel, seed: int) -> Variant:
    """A variant in another precision: the ONNX form by convbn.export.precision, the module by its own cast.

    int8 ranges come from seeded random inputs: enough to measure the time, not to judge the accuracy.

    Args:
        variant: the model.
        precision: by name; ``as-is`` for the model as it is.
        source: where the shapes of its inputs are.
        seed: of the random inputs.

    Raises:
        NotSupportedError: it cannot be converted.
    """
    if precision == AS_IS:
        return variant
    if variant.onnx is None and variant.module is None:
        raise NotSupportedError("--precision is for models, and this is an engine", source=variant.path)
    onnx_form = None if variant.onnx is None else _converted_onnx(variant.onnx, precision, source, seed)
    module = None if variant.module is None else _converted_module(variant, precision)
    examples = variant.example_inputs
    if module is not None and examples is not None:
        examples = tuple(_cast(value, precision) for value in examples)
    return replace(variant, onnx=onnx_form, module=module, example_inputs=examples)


def with_engines(
    variant: Variant, runtimes: Sequence[str] | None, source: SourceModel, folder: Path
) -> Variant:
    """The variant with an engine for each TensorRT among the runtimes that can run here.

    Args:
        variant: the model.
        runtimes: names.
        source: where the shapes of its inputs are.
        folder: where the engines go.
    """
    from convbn.bench.runtimes.registry import form_of, load_library
    from convbn.export.engines.run.load import EngineFile

    wanted = set[str]()
    for name in runtimes or ():
        if form_of(name) == "engine":
            backend, _, levels = name.partition("@")
            wanted.add(backend)
            if "tf32" in levels.split("+"):
                wanted.add(f"{backend}@tf32")
    engines, seconds = dict(variant.engines), dict(variant.build_seconds)
    for name in sorted(wanted - set(engines)):
        start = time.perf_counter()
        try:
            load_library(name)
            if variant.onnx is not None:
                engines[name] = EngineFile(_engine(variant.onnx, name, source, folder), trust=True)
        except ConvBNError as error:
            engines[name] = error
        seconds[name] = time.perf_counter() - start
    return replace(variant, engines=engines, build_seconds=seconds)


def _engine(model: Any, name: str, source: SourceModel, folder: Path) -> Path:
    from convbn.export.engines.build.build import build_engine
    from convbn.export.shapes import ShapeRange

    path = folder / f"{len(list(folder.iterdir()))}.engine"
    shapes: dict[str | None, ShapeRange] = {
        name: ShapeRange(shape, shape, shape) for name, shape in (source.input_shapes or {}).items()
    }
    backend, _, tf32 = name.partition("@")
    build_engine(model, path, backend=backend, tf32=bool(tf32), shapes=shapes or None)
    return path


def _converted_onnx(model: Any, precision: str, source: SourceModel, seed: int) -> Any:
    from convbn.export.precision.convert import convert

    loaded = loaded_onnx(model)
    needed = PRECISIONS[precision].calibration == "required"
    origin, samples = "seeded random inputs", _CALIBRATION_SAMPLES
    calibration = random_calibration(loaded, source, origin, seed=seed, samples=samples) if needed else None
    return convert(loaded, precision, calibration=calibration).model


def random_calibration(
    model: Any, source: SourceModel, origin: str, *, seed: int, samples: int
) -> Calibration:
    """Random inputs in the place of calibration data.

    Args:
        model: what is fed, an ONNX model.
        source: where the shapes of its inputs are.
        origin: what records call the data.
        seed: of the inputs.
        samples: how many.
    """
    from convbn.bench.models.feeds import model_feeds
    from convbn.export.precision.int8.samples import Calibration

    shapes, examples = source.input_shapes, source.example_inputs
    feeds = model_feeds([model], shapes=shapes, seed=seed, samples=samples, example_inputs=examples)
    return Calibration(origin, [partial(dict, sample) for sample in feeds])


def _converted_module(variant: Variant, precision: str) -> Any:
    """A cast copy; None for int8, which eager PyTorch has no kernels for, and for exported programs."""
    import torch

    from convbn.fuse.frontends.torch.modules.copies import duplicate

    dtype = PRECISIONS[precision].dtype
    if dtype is None or isinstance(variant.module, torch.export.ExportedProgram):
        return None
    module: Any = variant.module
    return duplicate(module, share=False).to(getattr(torch, dtype))


def _cast(value: Any, precision: str) -> Any:
    import torch

    dtype = PRECISIONS[precision].dtype
    return value.to(getattr(torch, dtype or "")) if value.is_floating_point() else value
