"""How far a measurement is and how long it will still take: the seconds so far, and those in all."""

from __future__ import annotations

from convbn.bench.measure.options import Clock
from convbn.common.progress import Progress

__all__ = ["Trials"]

#: Seconds between two words: more often nobody can read, and each takes time from the measurement.
_PAUSE = 0.25


class Trials:
    """Counts trials (all variants of a case in one runtime) and tells about the one that is run.

    What remains is the time budget of the trials to come plus what each trial so far took beside its budget
    (loading, compiling, comparing outputs), so the estimate grows where models load slowly.

    Args:
        tell: is given what is done, the seconds so far, and those in all; both 0 if that is not known.
        clock: monotonic time in seconds.
        trials: how many there will be; None if that is not known.
        budget_seconds: of each trial.
    """

    def __init__(self, tell: Progress, clock: Clock, trials: int | None, budget_seconds: float) -> None:
        self._tell = tell
        self._clock = clock
        self._trials = trials
        self._budget = budget_seconds
        self._done = 0
        self._start = self._last = clock()
        self._label = ""

    def trial(self, label: str, budget_seconds: float) -> None:
        """A trial begins.

        Args:
            label: what is measured where.
            budget_seconds: time for it.
        """
        self._label = label
        self._budget = budget_seconds
        self.tell("loading")

    def finished(self) -> None:
        """A trial has ended."""
        self._done += 1

    def timing(self, left: float, doing: str) -> None:
        """The trial is being timed; what comes too soon after another are dropped.

        Args:
            left: seconds of it that are probably left.
            doing: what is done just now.
        """
        if self._clock() - self._last >= _PAUSE:
            self._line(left, doing)

    def tell(self, doing: str) -> None:
        """Something begins that is not timed."""
        self._line(self._budget, doing)

    def _line(self, left: float, doing: str) -> None:
        self._last = self._clock()
        if self._trials is None:
            self._tell(f"{self._label}: {doing}", 0, 0)
            return
        trials = max(self._trials, self._done + 1)
        spent = self._last - self._start
        per_trial = max(self._budget, spent / self._done if self._done else 0.0)
        remaining = max(0.0, left) + per_trial * (trials - self._done - 1)
        label = f"{self._label} ({self._done + 1} of {trials}): {doing}"
        self._tell(label, round(spent), max(1, round(spent + remaining)))
