"""The timing loops: warm-up until stable, and blocks of all sessions in random order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

__all__ = ["Call", "Clock", "Timing", "WarmUp", "interleave", "warm_up"]

Call: TypeAlias = Callable[[], None]
#: Monotonic time in seconds.
Clock: TypeAlias = Callable[[], float]

#: Consecutive windows that have to agree, and how closely, for a model to count as warm.
STABLE_WINDOWS = 3
STABLE_WITHIN = 0.05


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
        blocks: seconds per inference, one value (the mean) a block.
        inferences: seconds of each single inference.
    """

    calls_per_block: int
    blocks: list[float] = field(default_factory=list)
    inferences: list[float] = field(default_factory=list)


def warm_up(call: Call, *, clock: Clock, window_seconds: float, cap_seconds: float) -> WarmUp:
    """Run until three windows in a row agree within 5 %, or time is up.

    Args:
        call: one inference.
        clock: monotonic time.
        window_seconds: length of a window; at least one inference runs in each.
        cap_seconds: time to give up after.

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
            if now - opened >= window_seconds:
                break
        windows.append((now - opened) / calls)
        recent = windows[-STABLE_WINDOWS:]
        stable = len(recent) == STABLE_WINDOWS and max(recent) <= min(recent) * (1 + STABLE_WITHIN)
        if stable or now - start >= cap_seconds:
            return WarmUp(now - start, stable, min(windows))


def interleave(
    calls: Sequence[Call],
    per_call: Sequence[float],
    *,
    clock: Clock,
    block_seconds: float,
    budget_seconds: float,
    min_blocks: int,
    seed: int,
) -> list[Timing]:
    """Time one block of every session, in a new random order each round, until the budget is spent.

    Each block opens with one inference that is not counted: times are those of a warm model.

    Args:
        calls: one inference of each session.
        per_call: seconds each takes, roughly; sets how many make a block.
        clock: monotonic time.
        block_seconds: least length of a block.
        budget_seconds: time for all rounds together.
        min_blocks: rounds that are run even over the budget.
        seed: of the order.

    Returns:
        The times of each session; block i of one pairs with block i of any other.
    """
    rng = np.random.default_rng(seed)
    timings = [Timing(max(1, math.ceil(block_seconds / max(seconds, 1e-9)))) for seconds in per_call]
    start = clock()
    rounds = 0
    while rounds < min_blocks or clock() - start < budget_seconds:
        for index in rng.permutation(len(calls)).tolist():
            _block(calls[index], timings[index], clock)
        rounds += 1
    return timings


def _block(call: Call, timing: Timing, clock: Clock) -> None:
    # The caches still hold another model: the first inference brings this one back and is not counted.
    call()
    # One reading of the clock an inference: the end of one is the start of the next.
    stamps = [clock()]
    for _ in range(timing.calls_per_block):
        call()
        stamps.append(clock())
    timing.inferences.extend(np.diff(stamps).tolist())
    timing.blocks.append((stamps[-1] - stamps[0]) / timing.calls_per_block)
