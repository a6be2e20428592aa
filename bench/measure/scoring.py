"""From the times of one runtime to rows with ratios and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from convbn.bench.measure.blocks import Timing, WarmUp
from convbn.bench.results.result import Row, RuntimeControl
from convbn.bench.results.statistics import latency, paired_ratio
from convbn.bench.runtimes.base import Prepared, Variant
from convbn.bench.runtimes.gpu.nvml import GpuFacts, GpuReading
from convbn.bench.runtimes.registry import runtime_note, self_fused_name

__all__ = ["TimedSession", "TrialResult", "scored", "unmeasured"]


@dataclass(frozen=True)
class TrialResult:
    """The rows of one runtime, the baseline first, and its A/A control."""

    rows: tuple[Row, ...]
    control: RuntimeControl


@dataclass
class TimedSession:
    """A session that is timed, and what its times were.

    Attributes:
        prepared: the model with its inputs in place.
        load_seconds: from the model to this.
        warm: how the warm-up went.
        timing: its times.
        before: state of its GPU before the timing.
        after: likewise afterwards.
    """

    prepared: Prepared
    load_seconds: float
    warm: WarmUp = field(init=False)
    timing: Timing = field(init=False)
    before: GpuReading | None = None
    after: GpuReading | None = None


def unmeasured(variants: Sequence[Variant], runtime: str, reason: str) -> TrialResult:
    """What there is to say where nothing could be measured.

    Args:
        variants: the models.
        runtime: its name.
        reason: why.
    """
    kept = [one for one in variants if not one.self_fused or self_fused_name(runtime) is not None]
    rows = tuple(Row(runtime, one.name, "not measured", reason=reason) for one in kept)
    return TrialResult(rows, RuntimeControl(runtime, note=runtime_note(runtime)))


def scored(
    rows: Sequence[tuple[Row, TimedSession | None]], control: TimedSession, *, seed: int, batch: int | None
) -> TrialResult:
    """Ratios and verdicts of one runtime.

    Args:
        rows: the baseline first; each with its session if it was measured.
        control: the second session of the baseline.
        seed: of the bootstrap.
        batch: samples in an inference.
    """
    runtime, baseline = rows[0][0].runtime, rows[0][1]
    if baseline is None:
        raise TypeError("without a measured baseline there is no score")
    blocks = baseline.timing.blocks
    again = paired_ratio(control.timing.blocks, blocks, seed=seed)
    floor = again.farthest_from_one
    done = []
    for row, session in rows:
        if session is None:
            done.append(row)
            continue
        timing = session.timing
        ratio = None if session is baseline else paired_ratio(timing.blocks, blocks, seed=seed)
        times = latency(timing.inferences)
        done.append(
            replace(
                row,
                latency=times,
                throughput=(batch or 1) / times.mean,
                block_seconds=tuple(timing.blocks),
                calls_per_block=timing.calls_per_block,
                warm=session.warm.stable,
                ratio=ratio,
                verdict="baseline" if ratio is None else ratio.verdict(floor),
                load_seconds=session.load_seconds,
                gpu=_gpu_facts(session),
            )
        )
    return TrialResult(tuple(done), RuntimeControl(runtime, again, floor, runtime_note(runtime)))


def _gpu_facts(session: TimedSession) -> GpuFacts | None:
    device = session.prepared.device
    if device is None:
        return None
    return GpuFacts(device.name, device.mode, device.l2, session.before, session.after, device.tf32)
