from __future__ import annotations

import re

from convbn.bench.measure.progress import Progress


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def seconds_left(line: str) -> int:
    found = re.search(r"about (\d+):(\d\d) left", line)
    assert found is not None, line
    return 60 * int(found[1]) + int(found[2])


def test_what_loading_took_so_far_is_expected_of_the_rest() -> None:
    clock, lines = Ticks(), list[str]()
    progress = Progress(lines.append, clock, 4, 5.0)
    progress.trial("a in torch-cpu", 5.0)
    assert seconds_left(lines[-1]) == 20  # four budgets: nothing else is known yet
    clock.now = 12.0  # 5 s of timing, 7 s of loading and compiling
    progress.finished()
    progress.trial("b in torch-cpu", 5.0)
    assert seconds_left(lines[-1]) == 5 + 2 * 12
    assert "2/4" in lines[-1]


def test_the_bar_fills_and_never_runs_back_to_nothing_left() -> None:
    clock, lines = Ticks(), list[str]()
    progress = Progress(lines.append, clock, 1, 10.0)
    progress.trial("a", 10.0)
    for second in range(1, 11):
        clock.now = float(second)
        progress.timing(10.0 - second, "timing")
    filled = [line.count("█") for line in lines]
    assert filled == sorted(filled)
    assert (filled[0], filled[-1]) == (0, 20)
    clock.now = 15.0  # over the budget: min_blocks go before it
    progress.timing(-5.0, "timing")
    assert seconds_left(lines[-1]) == 0


def test_lines_that_come_too_fast_are_dropped() -> None:
    clock, lines = Ticks(), list[str]()
    progress = Progress(lines.append, clock, 1, 10.0)
    progress.trial("a", 10.0)
    for step in range(100):
        clock.now = step / 100
        progress.timing(5.0, "timing")
    assert len(lines) <= 5


def test_more_races_than_announced_are_no_error_and_nobody_need_listen() -> None:
    clock, lines = Ticks(), list[str]()
    progress = Progress(lines.append, clock, 1, 1.0)
    for _ in range(3):
        progress.trial("a", 1.0)
        progress.finished()
    assert "3/3" in lines[-1]
    unknown = Progress(lines.append, clock, None, 1.0)
    unknown.trial("a", 1.0)
    assert lines[-1] == "a: loading"
    Progress(None, clock, 1, 1.0).trial("a", 1.0)
