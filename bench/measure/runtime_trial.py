"""All sides in one runtime: open, compare, warm up, time, judge."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from convbn.bench.equivalence.compare import RETRY_SCALE, Equality
from convbn.bench.equivalence.difference import has_nonfinite, judge
from convbn.bench.equivalence.tolerance import Tolerance, coarsest_float, tolerance_of
from convbn.bench.measure.blocks import Clock, Timing, WarmUp, interleave, warm_up
from convbn.bench.measure.progress import Progress
from convbn.bench.measure.verdicts import Entrant, RaceResult, scored, unmeasured
from convbn.bench.models.feeds import inputs_differ, scaled
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.results.environment import library_versions
from convbn.bench.results.result import Row
from convbn.bench.runtimes.base import Session, SessionOptions, Side
from convbn.bench.runtimes.gpu.nvml import read_gpu
from convbn.bench.runtimes.registry import self_fused_name
from convbn.errors import ConvBNError
from convbn.export.precision.precisions import PRECISIONS

if TYPE_CHECKING:
    from convbn.bench.measure.protocol import Opener, ProtocolOptions

__all__ = ["race"]


def race(
    sides: Sequence[Side],
    runtime: str,
    feeds: Sequence[Feeds],
    options: ProtocolOptions,
    *,
    threads: int | None,
    precision: str,
    batch: int | None,
    budget_seconds: float,
    clock: Clock,
    opener: Opener,
    progress: Progress,
) -> RaceResult:
    """Measure every side in one runtime (see :func:`convbn.bench.measure.protocol.measure`)."""
    # Two quantised models have ranges of their own, and outputs as far apart as their steps are wide.
    row = PRECISIONS.get(precision)
    tolerance = tolerance_of(precision) if row is not None and row.bound is not None else None
    settings = SessionOptions(threads=threads, l2=options.l2)
    # A side that the runtime optimises as it likes runs under another name of the same runtime.
    named = [(side, self_fused_name(runtime) if side.self_fused else runtime) for side in sides]
    entries = [(side, name) for side, name in named if name is not None]
    with ExitStack() as stack:
        progress.tell("comparing outputs")
        start = clock()
        try:
            baseline = stack.enter_context(opener(runtime, sides[0], settings))
            expected, feeds, scale = _run_finite(baseline, feeds)
            entrants = [Entrant(baseline.prepare(feeds[0]), clock() - start + _built(sides[0], runtime))]
            control = stack.enter_context(opener(runtime, sides[0], settings))
            entrants.append(Entrant(control.prepare(feeds[0]), 0.0))
        except ConvBNError as error:
            return unmeasured([side for side, _ in entries], runtime, str(error))
        rows = [Row(runtime, sides[0].name, "measured", verdict="baseline")]
        for side, name in entries[1:]:
            start = clock()
            try:
                session = stack.enter_context(opener(name, side, settings))
                outputs = [session.run(sample) for sample in feeds]
                entrant = Entrant(session.prepare(feeds[0]), clock() - start + _built(side, runtime))
                equality = _judge(
                    sides[0],
                    baseline,
                    session,
                    expected,
                    outputs,
                    feeds,
                    scale,
                    runtime,
                    seed=options.seed,
                    tolerance=tolerance,
                )
            except ConvBNError as error:
                rows.append(Row(runtime, side.name, "not measured", reason=str(error)))
                continue
            if equality.equal:
                entrants.append(entrant)
                rows.append(Row(runtime, side.name, "measured", equality=equality))
            else:
                reason = f"its outputs are not shown to equal the baseline's: {equality.reason}"
                rows.append(Row(runtime, side.name, "not measured", reason=reason, equality=equality))
        timings, warm = _time(entrants, options, budget_seconds, clock, progress)
    return scored(runtime, rows, entrants, timings, warm, options.seed, batch)


def _built(side: Side, runtime: str) -> float:
    return side.build_seconds.get(runtime.partition("@")[0], 0.0)


def _time(
    entrants: Sequence[Entrant],
    options: ProtocolOptions,
    budget_seconds: float,
    clock: Clock,
    progress: Progress,
) -> tuple[list[Timing], list[WarmUp]]:
    warm: list[WarmUp] = []
    for entrant in entrants:
        progress.timing(budget_seconds - sum(state.seconds for state in warm), "warming up")
        state = warm_up(
            entrant.prepared.call,
            clock=clock,
            window_seconds=options.block_seconds,
            cap_seconds=options.warmup_seconds,
        )
        warm.append(state)
    for entrant in entrants:
        device = entrant.prepared.device
        entrant.before = None if device is None else read_gpu(device.bus_id)
    timings = interleave(
        [entrant.prepared for entrant in entrants],
        [state.per_call for state in warm],
        clock=clock,
        block_seconds=options.block_seconds,
        budget_seconds=budget_seconds - sum(state.seconds for state in warm),
        min_blocks=options.min_blocks,
        max_blocks=options.max_blocks,
        seed=options.seed,
        progress=lambda left: progress.timing(left, "timing"),
    )
    for entrant in entrants:
        device = entrant.prepared.device
        entrant.after = None if device is None else read_gpu(device.bus_id)
    return timings, warm


def _run_finite(session: Session, feeds: Sequence[Feeds]) -> tuple[list[list[Array]], Sequence[Feeds], float]:
    outputs = [session.run(sample) for sample in feeds]
    if has_nonfinite(outputs):
        smaller = [scaled(sample, RETRY_SCALE) for sample in feeds]
        again = [session.run(sample) for sample in smaller]
        if not has_nonfinite(again):
            return again, smaller, RETRY_SCALE
    return outputs, feeds, 1.0


def _judge(
    side: Side,
    baseline: Session,
    session: Session,
    expected: Sequence[Sequence[Array]],
    outputs: Sequence[Sequence[Array]],
    feeds: Sequence[Feeds],
    scale: float,
    runtime: str,
    *,
    seed: int,
    tolerance: Tolerance | None,
) -> Equality:
    model = side.onnx if side.onnx is not None else side.module
    verdict = judge(
        baseline.output_names,
        expected,
        outputs,
        computed_in=(None if model is None else coarsest_float(model), session.compute_dtype),
        inputs_differ=inputs_differ(feeds),
        tolerance=tolerance,
    )
    return Equality(
        verdict.status,
        verdict.reason,
        verdict.outputs,
        len(feeds),
        seed,
        scale,
        runtime,
        library_versions(),
        tolerance,
    )
