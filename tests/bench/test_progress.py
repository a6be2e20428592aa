from __future__ import annotations

from convbn.bench.measure.progress import Trials
from convbn.common.progress import silent


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Told:
    """What was told: phases, seconds so far, seconds in all."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.done: list[int] = []
        self.steps: list[int] = []

    def __call__(self, phase: str, done: int, steps: int) -> None:
        self.phases.append(phase)
        self.done.append(done)
        self.steps.append(steps)

    @property
    def left(self) -> int:
        return self.steps[-1] - self.done[-1]


def test_what_loading_took_so_far_is_expected_of_the_rest() -> None:
    clock, told = Ticks(), Told()
    progress = Trials(told, clock, 4, 5.0)
    progress.trial("a in torch-cpu", 5.0)
    assert told.left == 20  # four budgets: nothing else is known yet
    clock.now = 12.0  # 5 s of timing, 7 s of loading and compiling
    progress.finished()
    progress.trial("b in torch-cpu", 5.0)
    assert told.left == 5 + 2 * 12
    assert told.phases[-1] == "b in torch-cpu (2 of 4): loading"


def test_time_goes_on_and_never_runs_back_to_nothing_left() -> None:
    clock, told = Ticks(), Told()
    progress = Trials(told, clock, 1, 10.0)
    progress.trial("a", 10.0)
    for second in range(1, 11):
        clock.now = float(second)
        progress.timing(10.0 - second, "timing")
    assert told.done == list(range(11))
    assert set(told.steps) == {10}
    clock.now = 15.0  # over the budget: min_blocks go before it
    progress.timing(-5.0, "timing")
    assert told.left == 0


def test_what_comes_too_fast_is_dropped() -> None:
    clock, told = Ticks(), Told()
    progress = Trials(told, clock, 1, 10.0)
    progress.trial("a", 10.0)
    for step in range(100):
        clock.now = step / 100
        progress.timing(5.0, "timing")
    assert len(told.phases) <= 5


def test_more_races_than_announced_are_no_error_and_nobody_need_listen() -> None:
    clock, told = Ticks(), Told()
    progress = Trials(told, clock, 1, 1.0)
    for _ in range(3):
        progress.trial("a", 1.0)
        progress.finished()
    assert "3 of 3" in told.phases[-1]
    unknown = Trials(told, clock, None, 1.0)
    unknown.trial("a", 1.0)
    assert (told.phases[-1], told.steps[-1]) == ("a: loading", 0)
    Trials(silent, clock, 1, 1.0).trial("a", 1.0)
