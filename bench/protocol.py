"""Measure models against a baseline: prove equality first, then time paired blocks in random order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from convbn.bench.blocks import Clock
from convbn.bench.environment import describe_environment
from convbn.bench.feeds import model_feeds
from convbn.bench.inputs import Feeds
from convbn.bench.race import race
from convbn.bench.result import BenchResult, ModelFile
from convbn.bench.runtimes.base import Session, SessionOptions, Side
from convbn.bench.runtimes.registry import check_runtime, open_session
from convbn.errors import FileAccessError, UsageError

__all__ = ["ProtocolOptions", "measure"]

Opener: TypeAlias = Callable[[str, Side, SessionOptions], Session]


@dataclass(frozen=True)
class ProtocolOptions:
    """How to measure.

    Attributes:
        seed: of the inputs, the order of blocks and the bootstrap.
        threads: threads inside one operator; None leaves each runtime its default.
        block_seconds: least length of a block.
        budget_seconds: for each runtime, warm-up included; ``min_blocks`` goes before it.
        min_blocks: blocks of each side.
        warmup_seconds: most that each session is warmed up.
        samples: random inputs the outputs are compared on.
        input_shapes: full shapes by input name, for models with open axes.
    """

    seed: int = 0
    threads: int | None = None
    block_seconds: float = 0.05
    budget_seconds: float = 5.0
    min_blocks: int = 20
    warmup_seconds: float = 0.5
    samples: int = 2
    input_shapes: Mapping[str, tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        for name in ("block_seconds", "budget_seconds", "warmup_seconds", "min_blocks", "samples"):
            if not getattr(self, name) > 0:
                raise UsageError(f"must be above 0, not {getattr(self, name)}", source=f"option {name}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"must be at least 1, not {self.threads}", source="option threads")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        shapes = {name: list(shape) for name, shape in (self.input_shapes or {}).items()}
        return asdict(self) | {"input_shapes": shapes}


def measure(
    sides: Sequence[Side],
    runtimes: Sequence[str],
    *,
    options: ProtocolOptions | None = None,
    feeds: Sequence[Feeds] | None = None,
    clock: Clock = time.perf_counter,
    opener: Opener = open_session,
    progress: Callable[[str], object] | None = None,
    title: str | None = None,
    command: str | None = None,
    fold: Mapping[str, Any] | None = None,
    extra: Sequence[Mapping[str, str]] = (),
) -> BenchResult:
    """Compare the speed of models that compute the same.

    In each runtime, outputs are compared first, and a side whose outputs are not shown to equal the
    baseline's gets no speed. The rest is warmed up until its times are stable and then timed in
    blocks, one of each side a round, in random order. The effect is the median over rounds of
    side time / baseline time, below 1 is faster. A second session of the baseline runs along (A/A):
    a verdict needs a 95 % interval without 1 and an effect larger than what that control shows.

    Args:
        sides: the models; the first is the baseline.
        runtimes: names, see :mod:`convbn.bench.runtimes.registry`.
        options: how to measure.
        feeds: inputs, arrays by name, one mapping a sample; the first is timed. Random without.
        clock: monotonic time in seconds.
        opener: loads a side into a runtime.
        progress: is told in one line what happens next.
        title: heading of the reports.
        command: what to type to measure again, for the reports.
        fold: report of the fold that made one side from another, for the reports.
        extra: further facts for the reports, each ``{"label": …, "value": …}``.

    Returns:
        The result; a side that a runtime cannot run is a row with the reason, not an error.

    Raises:
        UsageError: a runtime is unknown, there are no sides, names repeat, or shapes are missing.
        FileAccessError: a model file cannot be read.
    """
    options = options or ProtocolOptions()
    _check(sides, runtimes)
    if opener is open_session:
        for name in runtimes:
            check_runtime(name)
    created, start = datetime.now(UTC), time.perf_counter()
    models = tuple(_model_file(side) for side in sides)
    samples = list(feeds) if feeds is not None else _random_feeds(sides, options)
    if not samples:
        raise UsageError("a measurement needs at least one sample")
    results = []
    for name in runtimes:
        results.append(race(sides, name, samples, options, clock=clock, opener=opener, progress=progress))
    return BenchResult(
        rows=tuple(row for result in results for row in result.rows),
        runtimes=tuple(result.control for result in results),
        models=models,
        inputs=tuple(
            {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
            for name, array in samples[0].items()
        ),
        options=options.to_dict(),
        environment=describe_environment(),
        created=created.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - start,
        title=title,
        command=command,
        fold=fold,
        extra=tuple(extra),
    )


def _check(sides: Sequence[Side], runtimes: Sequence[str]) -> None:
    if not sides:
        raise UsageError("there is no model to measure")
    if not runtimes:
        raise UsageError("there is no runtime to measure in", hint="name one with --runtime")
    for kind, names in (("model", [side.name for side in sides]), ("runtime", list(runtimes))):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UsageError(f"two {kind}s are called {min(twice)!r}", hint="name each once")


def _random_feeds(sides: Sequence[Side], options: ProtocolOptions) -> list[Feeds]:
    models = [model for side in sides for model in (side.onnx, side.module) if model is not None]
    examples = next((side.example_inputs for side in sides if side.example_inputs is not None), None)
    return list(
        model_feeds(
            models,
            shapes=options.input_shapes,
            seed=options.seed,
            samples=options.samples,
            example_inputs=examples,
        )
    )


def _model_file(side: Side) -> ModelFile:
    if not isinstance(side.onnx, str | Path):
        return ModelFile(side.name)
    path = Path(side.onnx)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ModelFile(side.name, str(path), digest, path.stat().st_size)
    except OSError as error:
        raise FileAccessError(error.strerror or "cannot be read", source=path) from error
