"""Works for steps of tests: each is imported by a worker process, by its name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from convbn.errors import BadInputError
from convbn.pipeline.works import Result


def note(folder: str, name: str, seconds: float = 0.0) -> Result:
    """Leave two files behind: when it began and when it ended."""
    Path(folder, f"{name}.begun").write_text(f"{time.monotonic()} {os.getpid()}")
    time.sleep(seconds)
    Path(folder, f"{name}.ended").write_text(f"{time.monotonic()} {os.getpid()}")
    return Result({"name": name})


def refuse() -> Result:
    raise BadInputError("is no model", source="x.onnx", hint="give another")


def break_down() -> Result:
    raise ValueError("nobody thought of this")


def die(folder: str, times: int) -> Result:
    """Kill this process, the first times that it is called."""
    for number in range(times):
        try:
            Path(folder, f"death{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.write(2, b"a library says\nfarewell\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return Result({"lives": times})


def threads() -> Result:
    return Result({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid()})
