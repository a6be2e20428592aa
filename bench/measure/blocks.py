"""The timing loops: warm-up until stable, and blocks of all sessions in random order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from convbn.bench.measure.options import Clock, ProtocolOptions
from convbn.bench.runtimes.base import Prepared

__all__ = ["Timing", "WarmUp", "interleave", "warm_up"]


#: Consecutive windows that have to agree, and how closely, for a model to count as warm.
STABLE_WINDOWS = 3
STABLE_WITHIN = 0.05
#: A block opens with an inference that is not counted only if it holds so many that this costs under 2 %.
#: In shorter blocks the median passes over it.
SETTLED_FROM = 50


@dataclass(frozen=True)
class WarmUp:
    """How the warm-up went.

    Attributes:
        seconds: it took.
        stable: whether it ended because the times had settled, not because time was up.
        per_call: seconds per inference in its fastest window: a hiccup may not set the block length.
    """

    seconds: float
    stable: bool
    per_call: float


@dataclass
class Timing:
    """Times of one session, grown block by block.

    Attributes:
        calls_per_block: inferences in a block.
        blocks: seconds per inference, one value (the median) a block.
        inferences: seconds of each single inference.
    """

    calls_per_block: int
    blocks: list[float] = field(default_factory=list)
    inferences: list[float] = field(default_factory=list)


def warm_up(
    call: Callable[[], object], options: ProtocolOptions, clock: Clock, most: float | None = None
) -> WarmUp:
    """Run until three windows in a row agree within 5 %, or time is up.

    Args:
        call: one inference.
        options: ``block_seconds`` is the length of a window, in which at least one inference runs;
            ``warmup_seconds`` the time to give up after.
        clock: monotonic time.
        most: seconds to give up after, where it is another time.

    Returns:
        How it went.
    """
    start = clock()
    windows: list[float] = []
    while True:
        opened, calls = clock(), 0
        while True:
            call()
            calls += 1
            now = clock()
            if now - opened >= options.block_seconds:
                break
        windows.append((now - opened) / calls)
        recent = windows[-STABLE_WINDOWS:]
        stable = len(recent) == STABLE_WINDOWS and max(recent) <= min(recent) * (1 + STABLE_WITHIN)
        if stable or now - start >= (options.warmup_seconds if most is None else most):
            return WarmUp(now - start, stable, min(windows))


def interleave(
    sessions: Sequence[Prepared],
    per_call: Sequence[float],
    options: ProtocolOptions,
    *,
    clock: Clock,
    budget_seconds: float,
    deadline: float = math.inf,
    progress: Callable[[float], object],
) -> list[Timing]:
    """Time one block of every session, in a new random order each round, until the budget is spent.

    Args:
        sessions: models with their inputs in place.
        per_call: seconds an inference of each takes, roughly; sets how many make a block.
        options: ``block_seconds`` is the least length of a block, ``min_blocks`` the rounds that are run even
            over the budget, ``max_blocks`` those after which there are enough, ``seed`` that of the order.
        clock: monotonic time.
        budget_seconds: time for all rounds together.
        deadline: when no further round may begin, however few there were; one there is always.
        progress: is told after each round how many seconds of timing are probably left.

    Returns:
        The times of each session; block i of one pairs with block i of any other.
    """
    rng = np.random.default_rng(options.seed)
    timings = [Timing(max(1, math.ceil(options.block_seconds / max(seconds, 1e-9)))) for seconds in per_call]
    start = clock()
    rounds = 0
    # A budget that would run out in the middle of a round is spent: time limits are promises.
    while rounds < options.min_blocks or (clock() - start) * (rounds + 1) < budget_seconds * rounds:
        if rounds == options.max_blocks or (rounds and clock() >= deadline):
            break
        for index in rng.permutation(len(sessions)).tolist():
            _block(sessions[index], timings[index], clock)
        rounds += 1
        progress(_left(clock() - start, rounds, budget_seconds, options))
    return timings


def _block(session: Prepared, timing: Timing, clock: Clock) -> None:
    # The caches still hold another model: the first inference brings this one back.
    if timing.calls_per_block >= SETTLED_FROM:
        session.call()
    if session.device_times is not None:
        times = session.device_times(timing.calls_per_block)
    else:
        # One reading of the clock an inference: the end of one is the start of the next.
        call, stamps = session.call, [clock()]
        for _ in range(timing.calls_per_block):
            call()
            stamps.append(clock())
        times = np.diff(stamps).tolist()
    timing.inferences.extend(times)
    timing.blocks.append(float(np.median(times)))


def _left(spent: float, rounds: int, budget: float, options: ProtocolOptions) -> float:
    a_round = spent / rounds
    left = max(a_round * max(0, options.min_blocks - rounds), budget - spent)
    return left if options.max_blocks is None else min(left, a_round * (options.max_blocks - rounds))
