"""TensorRT's log: collected instead of printed, and read for the line that names the cause."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BuildLog", "clean", "collect", "logger_of"]

_ERROR, _WARNING = 1, 2
# Without a driver every error is followed by a failed query of the device.
_NOISE = (
    "catchCudaError",
    "--- Begin node ---",
    "--- End node ---",
    "While parsing node number",
    "Invalid Node",
)
_CODED = re.compile(r"(?:[\w:]+: )?Error Code \d+: [\w ]+ \((?P<what>.*?)(?: In \w+ at \S+)?\)$", re.DOTALL)
_PLACE = re.compile(r"\[[\w.]+:\d+: \w+\] |^[\w.]+:\d+: (ERROR: )?|\.? In \w+ at \S+$")
_ASSERTION = re.compile(r'&& "(?P<what>[^"]+)"')


@dataclass
class BuildLog:
    """Lines of one piece of work.

    Attributes:
        lines: severity (0 internal error, 1 error, 2 warning, 3 information) and text.
    """

    lines: list[tuple[int, str]] = field(default_factory=list)

    def first_error(self) -> str | None:
        """The cause: the first error that is not an echo of another one, without its source location."""
        texts = [clean(text) for severity, text in self.lines if severity <= _ERROR]
        return next((text for text in texts if text), None)

    def warnings(self) -> list[str]:
        """The different warnings, in their order."""
        texts = [clean(text) for severity, text in self.lines if severity == _WARNING]
        return list(dict.fromkeys(text for text in texts if text))


def clean(text: str) -> str:
    """The first telling line of a message, without code and source location; empty for noise."""
    for line in text.splitlines():
        if any(noise in line for noise in _NOISE):
            continue
        if match := _CODED.search(line):
            line = match["what"]
        if match := _ASSERTION.search(line):
            line = match["what"]
        line = _PLACE.sub("", line).strip().rstrip(".")
        if line and line != "false":
            return line
    return ""


@functools.cache
def logger_of(trt: Any) -> Any:
    """The one logger of a backend.

    TensorRT keeps the first logger it is given for the life of the process and ignores later ones, so
    there is one per backend, and its sink changes.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of a module known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.sink: Callable[[int, str], None] | None = None
            self.lock = threading.RLock()

        def log(self, severity: Any, message: str) -> None:
            sink = self.sink
            if sink is not None:
                sink(int(severity), message)

    return Logger()


@contextlib.contextmanager
def collect(trt: Any) -> Iterator[BuildLog]:
    """Collect what a backend logs; one collector at a time, other threads wait.

    Args:
        trt: the backend's module.
    """
    logger, log = logger_of(trt), BuildLog()
    with logger.lock:
        before, logger.sink = logger.sink, lambda severity, text: log.lines.append((severity, text))
        try:
            yield log
        finally:
            logger.sink = before
