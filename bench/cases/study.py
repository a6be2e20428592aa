"""The cases of a benchmark: every model at every batch size, precision and number of threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from convbn.bench.cases.case import Case
from convbn.bench.cases.forms import in_precision, with_engines
from convbn.bench.cases.variants import (
    at_batch,
    default_runtimes,
    folded_variant,
    original_variant,
)
from convbn.bench.results.comparisons import SELF_FUSED
from convbn.bench.runtimes.base import Variant
from convbn.bench.runtimes.registry import self_fused_name
from convbn.errors import ConvBNError, UsageError
from convbn.export.loading.source_model import SourceModel
from convbn.export.precision.precisions import AS_IS, precision_named

if TYPE_CHECKING:
    from convbn.fuse.options import FuseOptions

__all__ = ["Grid", "NamedModel", "Study"]

T = TypeVar("T")


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


class NamedModel(NamedTuple):
    """A model that is not opened before its turn: its name for people, and what opens it."""

    name: str
    open: Callable[[], SourceModel]


@dataclass(frozen=True)
class _Prepared:
    """The variants of a model at one batch size, in its own precision."""

    source: SourceModel
    variants: tuple[Variant, ...]
    fold: dict[str, Any] | None


@dataclass(frozen=True)
class Study:
    """All that a benchmark measures: as many cases as its length says, each made when it is asked for.

    Where there are several cases, one that cannot be made is a case with its failure; an only one raises.

    Attributes:
        groups: models that are measured against the first of their group; one alone against its folded self.
        grid: what each is measured at.
        runtimes: names; None for the defaults. They say which forms of the model are needed.
        fuse_options: of the fold.
        threads: where the grid has none.
        seed: of the random inputs that int8 is calibrated on.
        alone: a model that is alone in its group is measured by itself.
    """

    groups: Sequence[Sequence[NamedModel]]
    grid: Grid = Grid()
    runtimes: Sequence[str] | None = None
    fuse_options: FuseOptions | None = None
    threads: int | None = None
    seed: int = 0
    alone: bool = False

    def __len__(self) -> int:
        return len(self.groups) * self.grid.size

    def __iter__(self) -> Iterator[Case]:
        with tempfile.TemporaryDirectory(prefix="convbn-bench-") as folder:
            for group in self.groups:
                yield from self._cases(group, Path(folder))

    def _cases(self, group: Sequence[NamedModel], folder: Path) -> Iterator[Case]:
        against = [other.name for other in group[1:]] or ([] if self.alone else ["folded"])
        names = ["original", *against]
        for batch in self.grid.batches or (None,):
            prepared = self._attempt(partial(self._prepared, group, batch))
            for precision in self.grid.precisions or (AS_IS,):
                variants: tuple[Variant, ...] | ConvBNError
                if isinstance(prepared, ConvBNError):
                    case = Case(group[0].name, (), (), failure=prepared)
                    variants = prepared
                else:
                    shapes = prepared.source.input_shapes
                    case = Case(
                        group[0].name,
                        (),
                        (),
                        input_shapes=shapes,
                        # Samples that were brought are of one batch size, whatever was asked for.
                        feeds=prepared.source.inputs if batch is None else None,
                        fold=prepared.fold,
                    )
                    variants = self._attempt(partial(self._variants, prepared, precision, folder))
                if isinstance(variants, ConvBNError):
                    case = replace(case, failure=variants)
                    variants = tuple(Variant(name) for name in names)
                runtimes = tuple(self.runtimes or default_runtimes(variants[0]))
                for threads in self.grid.threads or (self.threads,):
                    yield replace(
                        case,
                        variants=variants,
                        runtimes=runtimes,
                        batch=batch,
                        precision=precision,
                        threads=threads,
                    )

    def _attempt(self, make: Callable[[], T]) -> T | ConvBNError:
        """What is made, or why it cannot be."""
        try:
            return make()
        except ConvBNError as error:
            if len(self) == 1:
                raise
            return error

    def _prepared(self, group: Sequence[NamedModel], batch: int | None) -> _Prepared:
        source = at_batch(group[0].open(), batch)
        original = original_variant(source, self.runtimes)
        if len(group) == 1 and self.alone:
            return _Prepared(source, (original,), None)
        if len(group) == 1:
            folded, report = folded_variant(original, source, self.fuse_options)
            return _Prepared(source, (original, folded), report.to_dict())
        others = [
            replace(original_variant(at_batch(other.open(), batch), self.runtimes), name=other.name)
            for other in group[1:]
        ]
        return _Prepared(source, (original, *others), None)

    def _variants(self, prepared: _Prepared, precision: str, folder: Path) -> tuple[Variant, ...]:
        source = prepared.source
        found = [in_precision(one, precision, source, self.seed) for one in prepared.variants]
        found = [with_engines(one, self.runtimes, source, folder) for one in found]
        original = found[0]
        # The baseline once more, where a runtime can be told to optimise it and is told not to.
        names = self.runtimes or default_runtimes(original)
        if original.onnx is not None and not self.alone and any(map(self_fused_name, names)):
            found.append(replace(original, name=SELF_FUSED, self_fused=True))
        return tuple(found)
