"""Measure models against a baseline: prove equality first, then time paired blocks in random order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from datetime import UTC, datetime

from convbn.bench.cases.case import Case, batch_of, case_feeds, model_file
from convbn.bench.measure.memory import peak_memory
from convbn.bench.measure.options import Instruments, ProtocolOptions
from convbn.bench.measure.progress import Trials
from convbn.bench.measure.runtime_trial import RuntimeTrial
from convbn.bench.measure.scoring import TrialResult, unmeasured
from convbn.bench.models.inputs import Feeds
from convbn.bench.results.environment import describe_environment
from convbn.bench.results.result import BenchResult, CaseResult, Row, case_id
from convbn.bench.runtimes.registry import check_runtime, load_library
from convbn.errors import ConvBNError, NotSupportedError, UsageError

__all__ = ["measure"]


def measure(
    cases: Iterable[Case],
    options: ProtocolOptions | None = None,
    *,
    instruments: Instruments | None = None,
) -> BenchResult:
    """Compare the speed of models that compute the same, case by case.

    In each runtime, outputs are compared first, and a variant whose outputs are not shown to equal the
    baseline's gets no speed. The rest is warmed up until its times are stable and then timed in
    blocks, one of each variant a round, in random order. The effect is the median over rounds of
    variant time / baseline time, below 1 is faster. A second session of the baseline runs along (A/A):
    a verdict needs a 95 % interval without 1 and an effect larger than what that control shows.

    Args:
        cases: taken one by one, so that models need not all be in memory; how many there will be is
            asked of their length, for the progress and ``total_seconds``.
        options: how to measure; ``threads`` and ``input_shapes`` are those of the cases.
        instruments: with what.

    Returns:
        The result; a variant that a runtime cannot run is a row with the reason, not an error.

    Raises:
        UsageError: a runtime is unknown, there are no variants, names repeat, or shapes are missing.
        FileAccessError: a model file cannot be read.
    """
    run = _Run(options or ProtocolOptions(), instruments or Instruments(), cases)
    created = datetime.now(UTC)
    for case in cases:
        run.measure(case)
    if not run.done:
        raise UsageError("there is no model to measure")
    return BenchResult(
        cases=tuple(run.done),
        options=run.options.to_dict(),
        environment=describe_environment(),
        created=created.isoformat(timespec="seconds"),
        seconds=run.clock() - run.start,
    )


class _Run:
    """A measurement under way: what it is made with, the time that is left, and what is done."""

    def __init__(self, options: ProtocolOptions, instruments: Instruments, cases: Iterable[Case]) -> None:
        self.options, self.instruments, self.clock = options, instruments, instruments.clock
        self.expected = len(cases) if isinstance(cases, Sized) else None
        if options.total_seconds is not None and self.expected is None:
            raise ValueError("a total budget cannot be shared out without the number of cases")
        self.start = self.clock()
        self.deadline = math.inf if options.total_seconds is None else self.start + options.total_seconds
        self.done: list[CaseResult] = []
        self.progress: Trials | None = None
        self.started = False

    def measure(self, case: Case) -> None:
        """Measure a case in all its runtimes."""
        _check(case, known=self.instruments.real)
        files = tuple(model_file(variant) for variant in case.variants)
        # The time a library takes to be imported is not the time its first model takes to load.
        missing = _missing(case.runtimes) if self.instruments.real else {}
        idle = case.failure is not None or len(missing) == len(case.runtimes)
        feeds = [] if idle else case_feeds(case, seed=self.options.seed, samples=self.options.samples)
        if not feeds and not idle:
            raise UsageError("a measurement needs at least one sample")
        progress = self._progress(len(case.runtimes))
        results: list[TrialResult] = []
        for index, runtime in enumerate(case.runtimes):
            budget = self._budget(len(case.runtimes) - index, len(case.runtimes))
            progress.trial(f"{case.name} in {runtime}", budget)
            failure = case.failure or missing.get(runtime) or self._spent()
            if failure is not None:
                results.append(unmeasured(case.variants, runtime, str(failure)))
            else:
                trial = RuntimeTrial(
                    case, runtime, feeds, budget, self.options, self.instruments, progress, self.deadline
                )
                results.append(self._with_memory(trial.run(), case, feeds[0], progress))
            progress.finished()
        batch = batch_of(feeds[0]) if feeds else case.batch
        taken = [one.id for one in self.done]
        inputs = feeds[0] if feeds else {}
        self.done.append(
            CaseResult(
                id=case_id(case.name, batch, case.precision, case.threads, taken),
                name=case.name,
                batch=batch,
                precision=case.precision,
                threads=case.threads,
                inputs=tuple(
                    {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
                    for name, array in inputs.items()
                ),
                sides=files,
                rows=tuple(row for result in results for row in result.rows),
                runtimes=tuple(result.control for result in results),
                fold=case.fold,
            )
        )

    def _progress(self, trials: int) -> Trials:
        if self.progress is None:
            expected = None if self.expected is None else self.expected * trials
            self.progress = Trials(self.instruments.tell, self.clock, expected, self.options.budget_seconds)
        return self.progress

    def _budget(self, trials_left: int, trials: int) -> float:
        """Seconds for the next trial: ``trials_left`` in this case, ``trials`` in each to come."""
        most, total = self.options.budget_seconds, self.options.total_seconds
        if total is None:
            return most
        cases_to_come = (self.expected or 1) - len(self.done) - 1
        left = self.start + total - self.clock()
        return max(0.0, min(most, left / (trials_left + trials * cases_to_come)))

    def _spent(self) -> ConvBNError | None:
        """Why nothing more is measured, when the time for everything is over; the first runtime always is."""
        if self.clock() < self.deadline or not self.started:
            self.started = True
            return None
        return NotSupportedError(
            f"the {self.options.total_seconds:g} s for everything were spent before its turn",
            hint="give --total-budget more",
        )

    def _with_memory(self, result: TrialResult, case: Case, feeds: Feeds, progress: Trials) -> TrialResult:
        if not self.instruments.real or not self.options.memory or self.clock() >= self.deadline:
            return result
        progress.tell("measuring memory")
        variants = {variant.name: variant for variant in case.variants}

        def measured(row: Row) -> Row:
            if row.status == "not measured" or self.clock() >= self.deadline:
                return row
            memory = peak_memory(row.runtime, variants[row.side], feeds, threads=case.threads)
            return replace(row, peak_memory=memory)

        return replace(result, rows=tuple(measured(row) for row in result.rows))


def _missing(runtimes: Sequence[str]) -> dict[str, ConvBNError]:
    """What this machine lacks of each runtime that it lacks something of."""
    missing: dict[str, ConvBNError] = {}
    for name in runtimes:
        try:
            load_library(name)
        except ConvBNError as error:
            missing[name] = error
    return missing


def _check(case: Case, *, known: bool) -> None:
    if not case.variants:
        raise UsageError("there is no model to measure")
    if not case.runtimes:
        raise UsageError("there is no runtime to measure in", hint="name one with --runtime")
    for kind, names in (("model", [one.name for one in case.variants]), ("runtime", list(case.runtimes))):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UsageError(f"two {kind}s are called {min(twice)!r}", hint="name each once")
    for name in case.runtimes if known else ():
        check_runtime(name)
