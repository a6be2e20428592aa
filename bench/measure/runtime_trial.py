"""All variants of a case in one runtime: open, compare, warm up, time, judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from convbn.bench.cases.case import Case, batch_of
from convbn.bench.equivalence.compare import RETRY_SCALE, Equality
from convbn.bench.equivalence.difference import has_nonfinite, judge
from convbn.bench.equivalence.tolerance import coarsest_float, tolerance_of
from convbn.bench.measure.blocks import interleave, warm_up
from convbn.bench.measure.options import Instruments, ProtocolOptions
from convbn.bench.measure.progress import Trials
from convbn.bench.measure.scoring import TimedSession, TrialResult, scored, unmeasured
from convbn.bench.models.feeds import inputs_differ, scaled
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.results.environment import library_versions
from convbn.bench.results.result import Row
from convbn.bench.runtimes.base import Session, SessionOptions, Variant
from convbn.bench.runtimes.gpu.nvml import read_gpu
from convbn.bench.runtimes.registry import self_fused_name
from convbn.errors import ConvBNError
from convbn.export.precision.precisions import PRECISIONS

__all__ = ["RuntimeTrial"]


@dataclass(frozen=True)
class _Reference:
    """The baseline's outputs, and the inputs they are for: scaled down where they overflowed."""

    session: Session
    outputs: Sequence[Sequence[Array]]
    feeds: Sequence[Feeds]
    scale: float


@dataclass(frozen=True)
class RuntimeTrial:
    """All variants of a case in one runtime.

    Attributes:
        case: the variants, the first of which is the baseline.
        runtime: its name.
        feeds: inputs, arrays by name, one mapping a sample; the first is timed.
        budget_seconds: time for it, warm-up included.
        options: how to measure.
        instruments: with what.
        progress: is told what is done.
        deadline: when the whole measurement has to end.
    """

    case: Case
    runtime: str
    feeds: Sequence[Feeds]
    budget_seconds: float
    options: ProtocolOptions
    instruments: Instruments
    progress: Trials
    deadline: float = math.inf
    _stack: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def run(self) -> TrialResult:
        """Measure; a variant that the runtime cannot run, or whose outputs differ, is a row without times."""
        first, *others = self.case.variants
        with self._stack:
            self.progress.tell("comparing outputs")
            start = self.instruments.clock()
            try:
                reference = _reference(self._open(first), self.feeds)
                baseline = self._timed(reference.session, first, reference, start)
                control = TimedSession(self._open(first).prepare(reference.feeds[0]), 0.0)
            except ConvBNError as error:
                return unmeasured(self.case.variants, self.runtime, str(error))
            rows: list[tuple[Row, TimedSession | None]] = [
                (Row(self.runtime, first.name, "measured", verdict="baseline"), baseline)
            ]
            # A variant that the runtime optimises as it likes exists where it has a level to choose.
            having = [one for one in others if not one.self_fused or self_fused_name(self.runtime)]
            rows += [self._compared(one, reference) for one in having]
            self._time([baseline, control, *(session for _, session in rows[1:] if session is not None)])
        return scored(rows, control, seed=self.options.seed, batch=batch_of(self.feeds[0]))

    def _open(self, variant: Variant) -> Session:
        name = (self_fused_name(self.runtime) if variant.self_fused else None) or self.runtime
        settings = SessionOptions(threads=self.case.threads, l2=self.options.l2)
        return self._stack.enter_context(self.instruments.opener(name, variant, settings))

    def _timed(self, session: Session, variant: Variant, reference: _Reference, start: float) -> TimedSession:
        prepared = session.prepare(reference.feeds[0])
        built = variant.build_seconds.get(self.runtime.partition("@")[0], 0.0)
        return TimedSession(prepared, self.instruments.clock() - start + built)

    def _compared(self, variant: Variant, reference: _Reference) -> tuple[Row, TimedSession | None]:
        row = Row(self.runtime, variant.name, "not measured")
        start = self.instruments.clock()
        try:
            session = self._open(variant)
            outputs = [session.run(sample) for sample in reference.feeds]
            timed = self._timed(session, variant, reference, start)
            equality = self._equality(session, outputs, reference)
        except ConvBNError as error:
            return replace(row, reason=str(error)), None
        if equality.equal:
            return replace(row, status="measured", equality=equality), timed
        reason = f"its outputs are not shown to equal the baseline's: {equality.reason}"
        return replace(row, reason=reason, equality=equality), None

    def _equality(
        self, session: Session, outputs: Sequence[Sequence[Array]], reference: _Reference
    ) -> Equality:
        baseline, precision = self.case.variants[0], self.case.precision
        model = baseline.onnx if baseline.onnx is not None else baseline.module
        # Two quantised models have ranges of their own, and outputs as far apart as their steps are wide.
        bounded = precision in PRECISIONS and PRECISIONS[precision].bound is not None
        tolerance = tolerance_of(precision) if bounded else None
        verdict = judge(
            reference.session.output_names,
            reference.outputs,
            outputs,
            computed_in=(None if model is None else coarsest_float(model), session.compute_dtype),
            inputs_differ=inputs_differ(reference.feeds),
            tolerance=tolerance,
        )
        return Equality(
            verdict.status,
            verdict.reason,
            verdict.outputs,
            len(reference.feeds),
            self.options.seed,
            reference.scale,
            self.runtime,
            library_versions(),
            tolerance,
        )

    def _time(self, sessions: Sequence[TimedSession]) -> None:
        clock, left = self.instruments.clock, self.budget_seconds
        for session in sessions:
            self.progress.timing(left, "warming up")
            most = max(0.0, min(self.options.warmup_seconds, (self.deadline - clock()) / 2))
            session.warm = warm_up(session.prepared.call, self.options, clock, most)
            left -= session.warm.seconds
        for session in sessions:
            device = session.prepared.device
            session.before = None if device is None else read_gpu(device.bus_id)
        timings = interleave(
            [session.prepared for session in sessions],
            [session.warm.per_call for session in sessions],
            self.options,
            clock=clock,
            budget_seconds=left,
            deadline=self.deadline,
            progress=lambda left: self.progress.timing(left, "timing"),
        )
        for session, timing in zip(sessions, timings, strict=True):
            device = session.prepared.device
            session.timing = timing
            session.after = None if device is None else read_gpu(device.bus_id)


def _reference(session: Session, feeds: Sequence[Feeds]) -> _Reference:
    outputs = [session.run(sample) for sample in feeds]
    if has_nonfinite(outputs):
        smaller = [scaled(sample, RETRY_SCALE) for sample in feeds]
        again = [session.run(sample) for sample in smaller]
        if not has_nonfinite(again):
            return _Reference(session, again, smaller, RETRY_SCALE)
    return _Reference(session, outputs, feeds, 1.0)
