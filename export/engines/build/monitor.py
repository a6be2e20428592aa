"""Progress of a build, and its cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Progress", "make_monitor"]

# Called with the name of a phase, the steps that are done and the steps it has. False cancels.
Progress: TypeAlias = Callable[[str, int, int], object]


def make_monitor(trt: Any, progress: Progress | None, cancel: threading.Event) -> Any:
    """A progress monitor that never loses an exception.

    TensorRT prints and drops what a monitor raises. Here the first exception is kept in ``error``, sets
    `cancel`, and the build ends at its next step.

    Args:
        trt: the backend's module.
        progress: the callback, if any; called from the thread that builds.
        cancel: set it from any thread to end the build.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of a module known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.error: BaseException | None = None
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not cancel.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self.steps.get(phase_name, 0))

        def _report(self, phase: str, step: int) -> None:
            if progress is None or cancel.is_set():
                return
            try:
                if progress(phase, step, self.steps.get(phase, 0)) is False:
                    cancel.set()
            except BaseException as error:  # re-raised by the caller of the build
                self.error = error
                cancel.set()

    return Monitor()
