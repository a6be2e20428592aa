"""One step, in whatever process: the work, and an answer whatever becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from convbn.common.text import named_line
from convbn.errors import ConvBNError, FileAccessError
from convbn.pipeline.outcome import Outcome, Output, Status
from convbn.pipeline.step import Step
from convbn.pipeline.works import Result

__all__ = ["perform"]


def perform(step: Step) -> Outcome:
    """Do a step; an exception becomes a failed outcome with the exit code of the command line."""
    start = time.perf_counter()
    try:
        result = _work(step.work)(**step.options)
        outputs = tuple(Output(path, Path(path).stat().st_size) for path in result.outputs)
    except ConvBNError as error:
        return _failed(step, start, str(error), error.exit_code)
    except MemoryError:
        return _failed(step, start, "there is not enough memory for it", FileAccessError.exit_code)
    except OSError as error:
        return _failed(step, start, named_line(error), FileAccessError.exit_code)
    except Exception as error:
        return _failed(step, start, f"internal error: {named_line(error)}", 70)
    facts: dict[str, Any] = {"report": result.report, "error": result.error, "exit_code": result.exit_code}
    status: Status = "done" if result.exit_code == 0 else "failed"
    return Outcome(
        step.name, step.kind, step.model, status, time.perf_counter() - start, outputs=outputs, **facts
    )


def _work(name: str) -> Callable[..., Result]:
    module, _, function = name.partition(":")
    work: Callable[..., Result] = getattr(import_module(module), function)
    return work


def _failed(step: Step, start: float, error: str, exit_code: int) -> Outcome:
    seconds = time.perf_counter() - start
    return Outcome(step.name, step.kind, step.model, "failed", seconds, error=error, exit_code=exit_code)
