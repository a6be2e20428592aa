"""From the times of one runtime to rows with ratios and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from convbn.bench.measure.blocks import Timing, WarmUp
from convbn.bench.results.result import Row, RuntimeControl, Verdict
from convbn.bench.results.statistics import Ratio, latency, paired_ratio
from convbn.bench.runtimes.base import Prepared, Side
from convbn.bench.runtimes.gpu.nvml import GpuFacts, GpuReading
from convbn.bench.runtimes.registry import runtime_note, self_fused_name

__all__ = ["Entrant", "RaceResult", "scored", "unmeasured"]


@dataclass(frozen=True)
class RaceResult:
    """The rows of one runtime, the baseline first, and its A/A control."""

    rows: tuple[Row, ...]
    control: RuntimeControl


@dataclass
class Entrant:
    """A session that is timed, and what became of it so far."""

    prepared: Prepared
    load_seconds: float
    before: GpuReading | None = None
    after: GpuReading | None = None


def unmeasured(sides: Sequence[Side], runtime: str, reason: str) -> RaceResult:
    """What there is to say where nothing could be measured.

    Args:
        sides: the models.
        runtime: its name.
        reason: why.
    """
    kept = [side for side in sides if not side.self_fused or self_fused_name(runtime) is not None]
    rows = tuple(Row(runtime, side.name, "not measured", reason=reason) for side in kept)
    return RaceResult(rows, RuntimeControl(runtime, note=runtime_note(runtime)))


def scored(
    runtime: str,
    rows: Sequence[Row],
    entrants: Sequence[Entrant],
    timings: Sequence[Timing],
    warm: Sequence[WarmUp],
    seed: int,
    batch: int | None,
) -> RaceResult:
    """Ratios and verdicts of one runtime.

    Args:
        runtime: its name.
        rows: the baseline first; those that were measured have no times yet.
        entrants: the baseline, its control, then the other rows that were measured.
        timings: of each entrant.
        warm: of each entrant.
        seed: of the bootstrap.
        batch: samples in an inference.
    """
    base, again = timings[0].blocks, timings[1].blocks
    control = paired_ratio(again, base, seed=seed)
    floor = control.farthest_from_one
    # The control sits at index 1 and has no row of its own.
    measured = iter([index for index in range(len(timings)) if index != 1])
    done = []
    for row in rows:
        if row.status == "not measured":
            done.append(row)
            continue
        index = next(measured)
        timing, entrant = timings[index], entrants[index]
        ratio = None if row.verdict == "baseline" else paired_ratio(timing.blocks, base, seed=seed)
        times = latency(timing.inferences)
        done.append(
            replace(
                row,
                latency=times,
                throughput=(batch or 1) / times.mean,
                block_seconds=tuple(timing.blocks),
                calls_per_block=timing.calls_per_block,
                warm=warm[index].stable,
                ratio=ratio,
                verdict="baseline" if ratio is None else _verdict(ratio, floor),
                load_seconds=entrant.load_seconds,
                gpu=_gpu_facts(entrant),
            )
        )
    return RaceResult(tuple(done), RuntimeControl(runtime, control, floor, runtime_note(runtime)))


def _gpu_facts(entrant: Entrant) -> GpuFacts | None:
    device = entrant.prepared.device
    if device is None:
        return None
    return GpuFacts(device.name, device.mode, device.l2, entrant.before, entrant.after, device.tf32)


def _verdict(ratio: Ratio, noise_floor: float) -> Verdict:
    if not ratio.excludes_one or abs(ratio.median - 1.0) <= noise_floor:
        return "no difference detected"
    return "faster" if ratio.median < 1.0 else "slower"
