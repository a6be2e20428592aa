"""One model under one set of conditions, before it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convbn.bench.models.feeds import model_feeds
from convbn.bench.models.inputs import Feeds, InputSpec, make_inputs
from convbn.bench.results.result import ModelFile
from convbn.bench.runtimes.base import Variant
from convbn.errors import BadInputError, ConvBNError, UsageError
from convbn.export.dtypes import host_type
from convbn.export.engines.run.load import EngineFile
from convbn.export.engines.sidecar import read_sidecar
from convbn.export.files.atomic import sha256_file
from convbn.export.files.sidecar import sidecar_path
from convbn.export.onnx_io.locations import stored_bytes
from convbn.export.onnx_io.provenance import precision_record
from convbn.export.onnx_io.read import open_model

__all__ = ["Case", "batch_of", "case_feeds", "model_file"]


@dataclass(frozen=True)
class Case:
    """What is measured against what.

    Attributes:
        name: the model's name for people.
        variants: the first is the baseline.
        runtimes: names, see :mod:`convbn.bench.runtimes.registry`.
        batch: size of axis 0 of the inputs, if it was chosen.
        precision: what the variants were converted to; "as-is" if they were not.
        threads: threads inside one operator; None leaves each runtime its default.
        input_shapes: full shapes by input name, for models with open axes.
        feeds: inputs, arrays by name, one mapping a sample; the first is timed. Random without.
        fold: report of the fold that made one variant from another.
        failure: why it cannot be measured at all; its rows say so.
    """

    name: str
    variants: tuple[Variant, ...]
    runtimes: tuple[str, ...]
    batch: int | None = None
    precision: str = "as-is"
    threads: int | None = None
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    feeds: Sequence[Feeds] | None = None
    fold: Mapping[str, Any] | None = field(default=None, repr=False)
    failure: ConvBNError | None = None


def case_feeds(case: Case, *, seed: int, samples: int) -> list[Feeds]:
    """The inputs of a case: those it brings, or random ones.

    Args:
        case: what is measured.
        seed: of random inputs.
        samples: how many random inputs.

    Raises:
        UsageError: shapes are missing or do not fit, or there is no model to take them from.
    """
    if case.feeds is not None:
        return list(case.feeds)
    models = [form for one in case.variants for form in (one.onnx, one.module) if form is not None]
    if not models:
        engine = next(
            (one for v in case.variants for one in v.engines.values() if isinstance(one, EngineFile)), None
        )
        if engine is not None and sidecar_path(engine.path).exists():
            return _engine_feeds(engine, case.input_shapes or {}, seed=seed, samples=samples)
        raise UsageError("nothing says what to feed an engine", hint="name its ONNX model as IN")
    examples = next((one.example_inputs for one in case.variants if one.example_inputs is not None), None)
    shapes = case.input_shapes
    return list(model_feeds(models, shapes=shapes, seed=seed, samples=samples, example_inputs=examples))


def _engine_feeds(
    engine: EngineFile, shapes: Mapping[str, tuple[int, ...]], *, seed: int, samples: int
) -> list[Feeds]:
    """Random inputs for an engine, of the types that its sidecar names and the shapes that it is best at."""
    sidecar = read_sidecar(engine.path)
    profile = (sidecar["profiles"] or [{}])[0]
    best = {name: tuple(span["opt"]) for name, span in profile.items()}
    specs = []
    for one in sidecar["inputs"]:
        shape = tuple(None if size < 0 else size for size in one["shape"])
        specs.append(InputSpec(one["name"], host_type(one["dtype"]).name, shape))
    known = {**best, **shapes}
    return [make_inputs(specs, shapes=known, seed=seed + i) for i in range(samples)]


def batch_of(feeds: Feeds) -> int | None:
    """The size of axis 0 that all inputs share; None if they do not share one."""
    sizes = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    return int(sizes.pop()) or None if len(sizes) == 1 else None


def model_file(variant: Variant) -> ModelFile:
    """Path, SHA-256 and size of a variant, and what its layers lose in int8; the size of its weights without a file.

    Raises:
        FileAccessError: its file cannot be read.
    """
    if isinstance(variant.onnx, str | Path):
        path = Path(variant.onnx)
        sha256 = variant.sha256 or sha256_file(path)
        return ModelFile(variant.name, str(path), sha256, stored_bytes(path), _sensitivity(variant))
    size = _weight_bytes(variant)
    return ModelFile(variant.name, variant.path, variant.sha256, size, _sensitivity(variant))


def _sensitivity(variant: Variant) -> Sequence[Mapping[str, Any]] | None:
    """From the record in an ONNX model; None where there is none that can be read."""
    if variant.onnx is None:
        return None
    try:
        model = variant.onnx
        if isinstance(model, str | Path):
            opened = open_model(model, external_data=False, hashed=False)
            opened.files.close()
            model = opened.model
        record = precision_record(model)
    except BadInputError:
        return None
    losses = None if record is None else record.get("sensitivity")
    return losses and [{key: loss[key] for key in ("node", "operator", "error")} for loss in losses]


def _weight_bytes(variant: Variant) -> int | None:
    if variant.onnx is not None:
        model: Any = variant.onnx
        try:
            return int(model.ByteSize())
        except ValueError:  # protobuf refuses to count beyond 2 GB
            return None
    module: Any = variant.module
    if module is None:
        return None
    held = getattr(module, "state_dict", None)
    tensors: Any = held.values() if isinstance(held, dict) else [*module.parameters(), *module.buffers()]
    return sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in tensors)
