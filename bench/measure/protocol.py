"""Measure models against a baseline: prove equality first, then time paired blocks in random order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from convbn.bench.measure.blocks import Clock
from convbn.bench.measure.case import Contest, batch_of, contest_feeds, model_file
from convbn.bench.measure.memory import peak_memory
from convbn.bench.measure.options import ProtocolOptions
from convbn.bench.measure.progress import Progress
from convbn.bench.measure.runtime_trial import race
from convbn.bench.measure.verdicts import RaceResult, unmeasured
from convbn.bench.models.inputs import Feeds
from convbn.bench.results.environment import describe_environment
from convbn.bench.results.result import BenchResult, Case, Row, case_id
from convbn.bench.runtimes.base import Session, SessionOptions, Side
from convbn.bench.runtimes.registry import check_runtime, load_library, open_session
from convbn.errors import ConvBNError, UsageError

__all__ = ["ProtocolOptions", "measure", "measure_all"]

Opener: TypeAlias = Callable[[str, Side, SessionOptions], Session]


def measure(
    sides: Sequence[Side],
    runtimes: Sequence[str],
    *,
    options: ProtocolOptions | None = None,
    name: str | None = None,
    feeds: Sequence[Feeds] | None = None,
    fold: Mapping[str, Any] | None = None,
    clock: Clock = time.perf_counter,
    opener: Opener = open_session,
    progress: Callable[[str], object] | None = None,
    title: str | None = None,
    command: str | None = None,
    extra: Sequence[Mapping[str, str]] = (),
) -> BenchResult:
    """Compare the speed of models that compute the same: one case of :func:`measure_all`.

    Args:
        sides: the models; the first is the baseline.
        runtimes: names, see :mod:`convbn.bench.runtimes.registry`.
        options: how to measure.
        name: of the model; that of the first side without.
        feeds: inputs, arrays by name, one mapping a sample; the first is timed. Random without.
        fold: report of the fold that made one side from another, for the reports.
        clock: monotonic time in seconds.
        opener: loads a side into a runtime.
        progress: is told in one line what happens next.
        title: heading of the reports.
        command: what to type to measure again, for the reports.
        extra: further facts for the reports, each ``{"label": …, "value": …}``.

    Returns:
        The result, of one case.

    Raises:
        UsageError: a runtime is unknown, there are no sides, names repeat, or shapes are missing.
        FileAccessError: a model file cannot be read.
    """
    options = options or ProtocolOptions()
    if not sides:
        raise UsageError("there is no model to measure")
    contest = Contest(
        name or sides[0].name,
        tuple(sides),
        threads=options.threads,
        input_shapes=options.input_shapes,
        feeds=feeds,
        fold=fold,
    )
    return measure_all(
        [contest],
        runtimes,
        options=options,
        contests_ahead=1,
        clock=clock,
        opener=opener,
        progress=progress,
        title=title,
        command=command,
        extra=extra,
    )


def measure_all(
    contests: Iterable[Contest],
    runtimes: Sequence[str] | Callable[[Contest], Sequence[str]],
    *,
    options: ProtocolOptions | None = None,
    contests_ahead: int | None = None,
    clock: Clock = time.perf_counter,
    opener: Opener = open_session,
    progress: Callable[[str], object] | None = None,
    title: str | None = None,
    command: str | None = None,
    extra: Sequence[Mapping[str, str]] = (),
) -> BenchResult:
    """Compare the speed of models that compute the same, case by case.

    In each runtime, outputs are compared first, and a side whose outputs are not shown to equal the
    baseline's gets no speed. The rest is warmed up until its times are stable and then timed in
    blocks, one of each side a round, in random order. The effect is the median over rounds of
    side time / baseline time, below 1 is faster. A second session of the baseline runs along (A/A):
    a verdict needs a 95 % interval without 1 and an effect larger than what that control shows.

    Args:
        contests: the cases; taken one by one, so that models need not all be in memory.
        runtimes: names, see :mod:`convbn.bench.runtimes.registry`; or what chooses them for a case.
        options: how to measure; ``threads`` and ``input_shapes`` are those of the contests.
        contests_ahead: how many contests there will be, for the progress and ``total_seconds``.
        clock: monotonic time in seconds.
        opener: loads a side into a runtime.
        progress: is told in one line what happens next.
        title: heading of the reports.
        command: what to type to measure again, for the reports.
        extra: further facts for the reports, each ``{"label": …, "value": …}``.

    Returns:
        The result; a side that a runtime cannot run is a row with the reason, not an error.

    Raises:
        UsageError: a runtime is unknown, there are no sides, names repeat, or shapes are missing.
        FileAccessError: a model file cannot be read.
    """
    options = options or ProtocolOptions()
    if options.total_seconds is not None and contests_ahead is None:
        raise ValueError("a total budget cannot be shared out without the number of contests")
    created, start = datetime.now(UTC), clock()
    cases: list[Case] = []
    meter: Progress | None = None
    for contest in contests:
        chosen = tuple(runtimes(contest) if callable(runtimes) else runtimes)
        _check(contest.sides, chosen, known=opener is open_session)
        if meter is None:
            races = None if contests_ahead is None else contests_ahead * len(chosen)
            meter = Progress(progress, clock, races, options.budget_seconds)
        share = _Share(options, clock, start, 1 if contests_ahead is None else contests_ahead - len(cases))
        taken = [case.id for case in cases]
        cases.append(
            _case(contest, chosen, options, taken, share, clock=clock, opener=opener, progress=meter)
        )
    if not cases:
        raise UsageError("there is no model to measure")
    return BenchResult(
        cases=tuple(cases),
        options=options.to_dict(),
        environment=describe_environment(),
        created=created.isoformat(timespec="seconds"),
        seconds=clock() - start,
        title=title,
        command=command,
        extra=tuple(extra),
    )


@dataclass(frozen=True)
class _Share:
    """Shares out what is left of the total time."""

    options: ProtocolOptions
    clock: Clock
    start: float
    contests_left: int

    def next(self, races_left: int, races: int) -> float:
        """Seconds for the next race: ``races_left`` in this contest, ``races`` in each to come."""
        most = self.options.budget_seconds
        if self.options.total_seconds is None:
            return most
        left = self.start + self.options.total_seconds - self.clock()
        return max(0.0, min(most, left / (races_left + races * (self.contests_left - 1))))


def _case(
    contest: Contest,
    runtimes: Sequence[str],
    options: ProtocolOptions,
    taken: Sequence[str],
    share: _Share,
    *,
    clock: Clock,
    opener: Opener,
    progress: Progress,
) -> Case:
    files = tuple(model_file(side) for side in contest.sides)
    # The time a library takes to be imported is not the time its first model takes to load.
    missing = _missing(runtimes) if opener is open_session else {}
    idle = contest.failure is not None or len(missing) == len(runtimes)
    feeds = [] if idle else contest_feeds(contest, seed=options.seed, samples=options.samples)
    if not feeds and not idle:
        raise UsageError("a measurement needs at least one sample")
    batch = batch_of(feeds[0]) if feeds else contest.batch
    results: list[RaceResult] = []
    for index, runtime in enumerate(runtimes):
        budget = share.next(len(runtimes) - index, len(runtimes))
        progress.race(f"{contest.name} in {runtime}", budget)
        failure = contest.failure or missing.get(runtime)
        if failure is not None:
            results.append(unmeasured(contest.sides, runtime, str(failure)))
        else:
            results.append(
                _race(
                    contest,
                    runtime,
                    feeds,
                    options,
                    batch,
                    budget,
                    clock=clock,
                    opener=opener,
                    progress=progress,
                )
            )
        progress.finished()
    first = feeds[0] if feeds else {}
    return Case(
        id=case_id(contest.name, batch, contest.precision, contest.threads, taken),
        name=contest.name,
        batch=batch,
        precision=contest.precision,
        threads=contest.threads,
        inputs=tuple(
            {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
            for name, array in first.items()
        ),
        sides=files,
        rows=tuple(row for result in results for row in result.rows),
        runtimes=tuple(result.control for result in results),
        fold=contest.fold,
    )


def _race(
    contest: Contest,
    runtime: str,
    feeds: Sequence[Feeds],
    options: ProtocolOptions,
    batch: int | None,
    budget: float,
    *,
    clock: Clock,
    opener: Opener,
    progress: Progress,
) -> RaceResult:
    result = race(
        contest.sides,
        runtime,
        feeds,
        options,
        threads=contest.threads,
        precision=contest.precision,
        batch=batch,
        budget_seconds=budget,
        clock=clock,
        opener=opener,
        progress=progress,
    )
    if opener is not open_session or not options.memory:
        return result
    progress.tell("measuring memory")
    return replace(result, rows=tuple(_with_memory(row, contest, feeds[0]) for row in result.rows))


def _missing(runtimes: Sequence[str]) -> dict[str, ConvBNError]:
    """What this machine lacks of each runtime that it lacks something of."""
    missing: dict[str, ConvBNError] = {}
    for name in runtimes:
        try:
            load_library(name)
        except ConvBNError as error:
            missing[name] = error
    return missing


def _with_memory(row: Row, contest: Contest, feeds: Feeds) -> Row:
    if row.status == "not measured":
        return row
    side = next(side for side in contest.sides if side.name == row.side)
    return replace(row, peak_memory=peak_memory(row.runtime, side, feeds, threads=contest.threads))


def _check(sides: Sequence[Side], runtimes: Sequence[str], *, known: bool) -> None:
    if not sides:
        raise UsageError("there is no model to measure")
    if not runtimes:
        raise UsageError("there is no runtime to measure in", hint="name one with --runtime")
    for kind, names in (("model", [side.name for side in sides]), ("runtime", list(runtimes))):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UsageError(f"two {kind}s are called {min(twice)!r}", hint="name each once")
    for name in runtimes if known else ():
        check_runtime(name)
