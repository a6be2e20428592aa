"""One model under one set of conditions, before it is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convbn.bench.models.feeds import model_feeds
from convbn.bench.models.inputs import Feeds, load_graph
from convbn.bench.results.result import ModelFile
from convbn.bench.runtimes.base import Side
from convbn.errors import ConvBNError, FileAccessError, UsageError

__all__ = ["Contest", "batch_of", "contest_feeds", "model_file"]


@dataclass(frozen=True)
class Contest:
    """What is measured against what.

    Attributes:
        name: the model's name for people.
        sides: the first is the baseline.
        batch: size of axis 0 of the inputs, if it was chosen.
        precision: what the sides were converted to; "as-is" if they were not.
        threads: threads inside one operator; None leaves each runtime its default.
        input_shapes: full shapes by input name, for models with open axes.
        feeds: inputs, arrays by name, one mapping a sample; the first is timed. Random without.
        fold: report of the fold that made one side from another.
        failure: why it cannot be measured at all; its rows say so.
    """

    name: str
    sides: tuple[Side, ...]
    batch: int | None = None
    precision: str = "as-is"
    threads: int | None = None
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    feeds: Sequence[Feeds] | None = None
    fold: Mapping[str, Any] | None = field(default=None, repr=False)
    failure: ConvBNError | None = None


def contest_feeds(contest: Contest, *, seed: int, samples: int) -> list[Feeds]:
    """The inputs of a contest: those it brings, or random ones.

    Args:
        contest: what is measured.
        seed: of random inputs.
        samples: how many random inputs.

    Raises:
        UsageError: shapes are missing or do not fit, or there is no model to take them from.
    """
    if contest.feeds is not None:
        return list(contest.feeds)
    sides = contest.sides
    models = [model for side in sides for model in (side.onnx, side.module) if model is not None]
    if not models:
        raise UsageError("nothing says what to feed an engine", hint="name its ONNX model as IN")
    examples = next((side.example_inputs for side in sides if side.example_inputs is not None), None)
    shapes = contest.input_shapes
    return list(model_feeds(models, shapes=shapes, seed=seed, samples=samples, example_inputs=examples))


def batch_of(feeds: Feeds) -> int | None:
    """The size of axis 0 that all inputs share; None if they do not share one."""
    sizes = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    return int(sizes.pop()) or None if len(sizes) == 1 else None


def model_file(side: Side) -> ModelFile:
    """Path, SHA-256 and size of a side; the size of its weights where it lies only in memory.

    Raises:
        FileAccessError: its file cannot be read.
    """
    if isinstance(side.onnx, str | Path):
        path = Path(side.onnx)
        try:
            return ModelFile(side.name, str(path), _sha256(path), path.stat().st_size + _outside(path))
        except OSError as error:
            raise FileAccessError(error.strerror or "cannot be read", source=path) from error
    return ModelFile(side.name, side.path, side.sha256, _weights(side))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _outside(path: Path) -> int:
    """Bytes of the files beside an ONNX file that hold its weights."""
    from onnx import TensorProto

    places = {
        entry.value
        for tensor in load_graph(path).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path.parent / place for place in places]
    return sum(file.stat().st_size for file in files if file.is_file())


def _weights(side: Side) -> int | None:
    if side.onnx is not None:
        model: Any = side.onnx
        try:
            return int(model.ByteSize())
        except ValueError:  # protobuf refuses to count beyond 2 GB
            return None
    module: Any = side.module
    if module is None:
        return None
    held = getattr(module, "state_dict", None)
    tensors: Any = held.values() if isinstance(held, dict) else [*module.parameters(), *module.buffers()]
    return sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in tensors)
