"""The cases of a benchmark: every model at every batch size, precision and number of threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.errors import ConvBNError, UsageError
from convbn.export.precision.precisions import precision_named
from convbn.side_forms import converted, with_engines
from convbn.sides import SELF_FUSED, Subject, at_batch, folded_side, original_side

if TYPE_CHECKING:
    from convbn.bench.measure.case import Contest
    from convbn.bench.runtimes.base import Side
    from convbn.fuse.options import FuseOptions

__all__ = ["Entry", "Grid", "contests"]


@dataclass(frozen=True)
class Grid:
    """What each model is measured at; empty for the model as it was given.

    Attributes:
        batches: sizes of axis 0 of the inputs.
        precisions: by name, :data:`convbn.export.precision.precisions.PRECISIONS`.
        threads: inside one operator.
    """

    batches: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("batch", self.batches), ("threads", self.threads)):
            if any(value < 1 for value in values):
                raise UsageError(f"must be at least 1, not {min(values)}", source=f"option {name}")
        for precision in self.precisions:
            precision_named(precision)

    @property
    def size(self) -> int:
        """Cases a model."""
        return max(1, len(self.batches)) * max(1, len(self.precisions)) * max(1, len(self.threads))


@dataclass(frozen=True)
class Entry:
    """A model that is not opened before its turn.

    Attributes:
        name: for people.
        open: gives the model.
        others: what is measured against it, opened likewise; without any, it is folded for it.
    """

    name: str
    open: Callable[[], Subject]
    others: tuple[tuple[str, Callable[[], Subject]], ...] = ()


@dataclass(frozen=True)
class _Plan:
    """What all cases of a model have in common."""

    grid: Grid
    runtimes: Sequence[str] | None
    fuse_options: FuseOptions | None
    threads: int | None
    seed: int
    strict: bool


def contests(
    entries: Sequence[Entry],
    grid: Grid,
    *,
    runtimes: Sequence[str] | None,
    fuse_options: FuseOptions | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> Iterator[Contest]:
    """The cases in order, each made when it is asked for.

    Args:
        entries: the models.
        grid: what each is measured at.
        runtimes: names; None for the defaults. They say which forms of the model are needed.
        fuse_options: of the fold.
        threads: where the grid has none.
        seed: of the random inputs that int8 is calibrated on.

    Yields:
        Cases. Where there are several, one that cannot be made is a case with its failure; an only one raises.
    """
    strict = len(entries) * grid.size == 1
    plan = _Plan(grid, runtimes, fuse_options, threads, seed, strict)
    with tempfile.TemporaryDirectory(prefix="convbn-bench-") as folder:
        for entry in entries:
            yield from _of_entry(entry, plan, Path(folder))


def _of_entry(entry: Entry, plan: _Plan, folder: Path) -> Iterator[Contest]:
    from convbn.bench.measure.case import Contest

    names = ("original", *(name for name, _ in entry.others)) if entry.others else ("original", "folded")
    grid = plan.grid
    for batch in grid.batches or (None,):
        prepared: _Prepared | ConvBNError
        try:
            prepared = _prepared(entry, batch, plan)
        except ConvBNError as error:
            prepared = error
        for precision in grid.precisions or ("as-is",):
            sides, fold, failure = _sides(prepared, precision, plan, folder)
            for threads in grid.threads or (plan.threads,):
                yield Contest(
                    name=entry.name,
                    sides=sides or _placeholders(names),
                    batch=batch,
                    precision=precision,
                    threads=threads,
                    input_shapes=prepared.subject.input_shapes if isinstance(prepared, _Prepared) else None,
                    fold=fold,
                    failure=failure,
                )


@dataclass(frozen=True)
class _Prepared:
    """The sides of a model at one batch size, in its own precision."""

    subject: Subject
    sides: tuple[Side, ...]
    fold: dict[str, Any] | None


def _prepared(entry: Entry, batch: int | None, plan: _Plan) -> _Prepared:
    subject = at_batch(entry.open(), batch)
    original = original_side(subject, plan.runtimes)
    if entry.others:
        others = [
            replace(original_side(at_batch(opened(), batch), plan.runtimes), name=name)
            for name, opened in entry.others
        ]
        return _Prepared(subject, (original, *others), None)
    folded, report = folded_side(original, subject, plan.fuse_options)
    return _Prepared(subject, (original, folded), report.to_dict())


def _sides(
    prepared: _Prepared | ConvBNError, precision: str, plan: _Plan, folder: Path
) -> tuple[tuple[Side, ...], dict[str, Any] | None, ConvBNError | None]:
    if isinstance(prepared, ConvBNError):
        if plan.strict:
            raise prepared
        return (), None, prepared
    try:
        sides = tuple(converted(side, precision, prepared.subject, plan.seed) for side in prepared.sides)
        sides = tuple(with_engines(side, plan.runtimes, prepared.subject, folder) for side in sides)
    except ConvBNError as error:
        if plan.strict:
            raise
        return (), prepared.fold, error
    return (*sides, *_self_fused(sides[0], plan)), prepared.fold, None


def _self_fused(original: Side, plan: _Plan) -> tuple[Side, ...]:
    """The baseline once more, where a runtime can be told to optimise it and is told not to."""
    from convbn.bench.runtimes.registry import self_fused_name
    from convbn.sides import default_runtimes

    names = plan.runtimes or default_runtimes(original)
    if original.onnx is None or not any(self_fused_name(name) for name in names):
        return ()
    return (replace(original, name=SELF_FUSED, self_fused=True),)


def _placeholders(names: Sequence[str]) -> tuple[Side, ...]:
    from convbn.bench.runtimes.base import Side

    return tuple(Side(name) for name in names)
