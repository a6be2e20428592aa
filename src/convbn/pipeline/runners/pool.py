"""The order of steps: each when what it needs is there and its runner has room, until all are done.

>>> fuse = {"arguments": ["fuse", "a.onnx", "-o", "out/a.onnx"]}
>>> steps = [Step("a", "fuse", "a", "convbn.pipeline.works:verb", fuse)]
>>> with LocalRunner() as runner:
...     ran = run_steps(steps, runner, on_event=lambda event: print(event.name, event.step.name))
>>> ran.outcomes[0].status
'done'
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from convbn.common.closing import Closing
from convbn.pipeline.outcome import Outcome
from convbn.pipeline.step import Step

__all__ = ["Event", "Ran", "Runner", "run_steps"]

_AGAIN = 0.5
"""Seconds after which a step is asked for again that another run was doing."""

_TICK = 0.5
"""Seconds after which progress is shown again although nothing happened."""


class Runner(Closing):
    """Something that does steps: processes of this machine, or a cluster."""

    @property
    def waiting(self) -> str | None:
        """What it waits for that is not its own, in words; None if it does not."""
        return None

    @abstractmethod
    def has_room(self, step: Step) -> bool:
        """Whether a step can be given to it now. One that does nothing has room for any."""

    @abstractmethod
    def submit(self, step: Step) -> None:
        """Give it a step that it has room for."""

    @abstractmethod
    def wait(self, seconds: float) -> list[tuple[Step, Outcome | None]]:
        """What has become of steps that were given to it: of at least one, unless that takes longer than `seconds`.

        None stands for a step that another run is doing: it is to be given again later.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Stop what runs, and leave nothing half-written."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something a listener may want to show.

    Attributes:
        name: ``started``; ``finished``, with the outcome; or ``tick``, from time to time.
        step: which; None for a tick.
        outcome: what became of it.
        waiting: of a tick, what the runner waits for that is not its own.
    """

    name: Literal["started", "finished", "tick"]
    step: Step | None = None
    outcome: Outcome | None = None
    waiting: str | None = None


Listener: TypeAlias = Callable[[Event], object]
Known: TypeAlias = Callable[[Step], Outcome | None]


@dataclass(slots=True)
class Ran:
    """What became of all steps.

    Attributes:
        outcomes: one a step, in the order in which the steps were given.
        stopped: what stopped the run before its end, to be raised once what was done is reported: Ctrl-C, SIGTERM.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    stopped: BaseException | None = None


def run_steps(
    steps: Sequence[Step],
    runner: Runner,
    *,
    on_event: Listener = lambda _: None,
    known: Known = lambda _: None,
) -> Ran:
    """Do steps in an order that their needs allow; one that fails costs only those that need it.

    Those that must be alone on their machine wait until no other can be done. On Ctrl-C and SIGTERM what runs is
    cancelled, what is done is kept, and the outcomes say which is which.

    Args:
        steps: those that others need are among them.
        runner: does them.
        on_event: is told of each start and end, in this thread.
        known: the outcome of a step that need not be done, when its turn has come; None for one that must.

    Returns:
        An outcome for every step.
    """
    order = _Order(steps, on_event)
    stopped: BaseException | None = None
    try:
        while order.unfinished:
            order.resume()
            _start(order, runner, known)
            if order.running:
                for step, outcome in runner.wait(_TICK):
                    if outcome is None:
                        order.postpone(step)
                    else:
                        order.finish(step, outcome)
            elif order.unfinished:  # another run is doing it, or has the machine
                time.sleep(_AGAIN)
            on_event(Event("tick", waiting=runner.waiting))
    except (KeyboardInterrupt, SystemExit) as error:
        stopped = error
        runner.cancel()
        order.stop()
    except BaseException:
        runner.cancel()
        raise
    return Ran([order.outcomes[step] for step in steps], stopped)


def _start(order: _Order, runner: Runner, known: Known) -> None:
    """Give the runner what it has room for. In turn, so that a large step is not overtaken for ever."""
    for queue in (order.ready, order.alone):
        while queue:
            step = queue[0]
            outcome = known(step)
            if outcome is None and not runner.has_room(step):
                break
            queue.popleft()
            if outcome is not None:
                order.finish(step, outcome)
                continue
            runner.submit(step)
            order.start(step)


class _Order:
    """Which steps can be done now, which run, and what became of the others."""

    def __init__(self, steps: Sequence[Step], on_event: Listener) -> None:
        self.outcomes: dict[Step, Outcome] = {}
        self.running: set[Step] = set()
        self.ready: deque[Step] = deque()
        self.alone: deque[Step] = deque()
        self.postponed: deque[tuple[float, Step]] = deque()
        self._steps = steps
        self._on_event = on_event
        self._missing: dict[Step, int] = {}
        self._needed_by: dict[Step, list[Step]] = {}
        for step in steps:
            if step.needs:
                self._missing[step] = len(step.needs)
                for need in step.needs:
                    self._needed_by.setdefault(need, []).append(step)
            else:
                self._queue(step).append(step)

    @property
    def unfinished(self) -> bool:
        return len(self.outcomes) < len(self._steps)

    def start(self, step: Step) -> None:
        self.running.add(step)
        self._on_event(Event("started", step))

    def postpone(self, step: Step) -> None:
        """Ask for a step again in a while: another run is doing it."""
        self.running.discard(step)
        self.postponed.append((time.monotonic() + _AGAIN, step))

    def resume(self) -> None:
        """Put what was postponed long enough behind the others."""
        while self.postponed and self.postponed[0][0] <= time.monotonic():
            _, step = self.postponed.popleft()
            self._queue(step).append(step)

    def finish(self, step: Step, outcome: Outcome) -> None:
        """Note what became of a step. What it was needed for is next: one model is finished before others begin."""
        self.running.discard(step)
        self.outcomes[step] = outcome
        self._on_event(Event("finished", step, outcome))
        for follower in reversed(self._needed_by.pop(step, ())):
            if follower in self.outcomes:
                continue
            if not outcome.succeeded:
                was = "failed" if outcome.status == "failed" else "was cancelled"
                self.finish(follower, _cancelled(follower, f"it needs {step.name}, which {was}"))
                continue
            self._missing[follower] -= 1
            if not self._missing[follower]:
                self._queue(follower).appendleft(follower)

    def stop(self) -> None:
        """Nothing is begun any more."""
        for step in self._steps:
            if step not in self.outcomes:
                self.finish(step, _cancelled(step, "the run was stopped"))

    def _queue(self, step: Step) -> deque[Step]:
        return self.alone if step.place.alone else self.ready


def _cancelled(step: Step, why: str) -> Outcome:
    return Outcome(step.name, step.kind, step.model, "cancelled", error=why)
