"""All sides in one runtime: open, compare, warm up, time, judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from convbn.bench.blocks import Call, Clock, Timing, WarmUp, interleave, warm_up
from convbn.bench.difference import has_nonfinite, judge
from convbn.bench.environment import library_versions
from convbn.bench.equality import RETRY_SCALE, Equality
from convbn.bench.feeds import inputs_differ, scaled
from convbn.bench.inputs import Array, Feeds
from convbn.bench.precision import coarsest_float
from convbn.bench.result import Row, RuntimeControl, Verdict
from convbn.bench.runtimes.base import Session, SessionOptions, Side
from convbn.bench.runtimes.registry import runtime_note
from convbn.bench.statistics import Ratio, latency, paired_ratio
from convbn.errors import ConvBNError

if TYPE_CHECKING:
    from convbn.bench.protocol import Opener, ProtocolOptions

__all__ = ["RaceResult", "race"]


@dataclass(frozen=True)
class RaceResult:
    """The rows of one runtime, the baseline first, and its A/A control."""

    rows: tuple[Row, ...]
    control: RuntimeControl


def race(
    sides: Sequence[Side],
    runtime: str,
    feeds: Sequence[Feeds],
    options: ProtocolOptions,
    *,
    clock: Clock,
    opener: Opener,
    progress: Callable[[str], object] | None,
) -> RaceResult:
    """Measure every side in one runtime (see :func:`convbn.bench.protocol.measure`)."""
    tell = progress or (lambda line: None)
    settings = SessionOptions(threads=options.threads)
    unmeasured = RuntimeControl(runtime, note=runtime_note(runtime))
    with ExitStack() as stack:
        tell(f"{runtime}: comparing outputs")
        try:
            baseline = stack.enter_context(opener(runtime, sides[0], settings))
            expected, feeds, scale = _run_finite(baseline, feeds)
            control = stack.enter_context(opener(runtime, sides[0], settings))
            calls = [baseline.prepare(feeds[0]), control.prepare(feeds[0])]
        except ConvBNError as error:
            return RaceResult(tuple(_unmeasured(runtime, side, str(error)) for side in sides), unmeasured)
        rows = [Row(runtime, sides[0].name, "measured", verdict="baseline")]
        for side in sides[1:]:
            try:
                session = stack.enter_context(opener(runtime, side, settings))
                equality = _compare(
                    sides[0], baseline, session, expected, feeds, scale, runtime, seed=options.seed
                )
                if equality.equal:
                    calls.append(session.prepare(feeds[0]))
            except ConvBNError as error:
                rows.append(_unmeasured(runtime, side, str(error)))
                continue
            if equality.equal:
                rows.append(Row(runtime, side.name, "measured", equality=equality))
            else:
                reason = f"its outputs are not shown to equal the baseline's: {equality.reason}"
                rows.append(replace(_unmeasured(runtime, side, reason), equality=equality))
        tell(f"{runtime}: warming up and timing for about {options.budget_seconds:g} s")
        timings, warm = _time(calls, options, clock)
    return _judged(runtime, rows, timings, warm, options.seed)


def _time(calls: Sequence[Call], options: ProtocolOptions, clock: Clock) -> tuple[list[Timing], list[WarmUp]]:
    warm = [
        warm_up(
            call,
            clock=clock,
            window_seconds=options.block_seconds,
            cap_seconds=options.warmup_seconds,
        )
        for call in calls
    ]
    timings = interleave(
        calls,
        [state.per_call for state in warm],
        clock=clock,
        block_seconds=options.block_seconds,
        budget_seconds=options.budget_seconds - sum(state.seconds for state in warm),
        min_blocks=options.min_blocks,
        seed=options.seed,
    )
    return timings, warm


def _judged(
    runtime: str, rows: Sequence[Row], timings: Sequence[Timing], warm: Sequence[WarmUp], seed: int
) -> RaceResult:
    base, again = timings[0].blocks, timings[1].blocks
    control = paired_ratio(again, base, seed=seed)
    floor = control.farthest_from_one
    # The control sits at index 1 and has no row of its own.
    measured = iter([(timings[0], warm[0]), *zip(timings[2:], warm[2:], strict=True)])
    done = []
    for row in rows:
        if row.status == "not measured":
            done.append(row)
            continue
        timing, state = next(measured)
        ratio = None if row.verdict == "baseline" else paired_ratio(timing.blocks, base, seed=seed)
        done.append(
            replace(
                row,
                latency=latency(timing.inferences),
                block_seconds=tuple(timing.blocks),
                calls_per_block=timing.calls_per_block,
                warm=state.stable,
                ratio=ratio,
                verdict="baseline" if ratio is None else _verdict(ratio, floor),
            )
        )
    return RaceResult(tuple(done), RuntimeControl(runtime, control, floor, runtime_note(runtime)))


def _verdict(ratio: Ratio, noise_floor: float) -> Verdict:
    if not ratio.excludes_one or abs(ratio.median - 1.0) <= noise_floor:
        return "no difference detected"
    return "faster" if ratio.median < 1.0 else "slower"


def _unmeasured(runtime: str, side: Side, reason: str) -> Row:
    return Row(runtime, side.name, "not measured", reason=reason)


def _run_finite(session: Session, feeds: Sequence[Feeds]) -> tuple[list[list[Array]], Sequence[Feeds], float]:
    outputs = [session.run(sample) for sample in feeds]
    if has_nonfinite(outputs):
        smaller = [scaled(sample, RETRY_SCALE) for sample in feeds]
        again = [session.run(sample) for sample in smaller]
        if not has_nonfinite(again):
            return again, smaller, RETRY_SCALE
    return outputs, feeds, 1.0


def _compare(
    side: Side,
    baseline: Session,
    session: Session,
    expected: Sequence[Sequence[Array]],
    feeds: Sequence[Feeds],
    scale: float,
    runtime: str,
    *,
    seed: int,
) -> Equality:
    model = side.onnx if side.onnx is not None else side.module
    verdict = judge(
        baseline.output_names,
        expected,
        [session.run(sample) for sample in feeds],
        computed_in=(None if model is None else coarsest_float(model), session.compute_dtype),
        inputs_differ=inputs_differ(feeds),
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
    )
