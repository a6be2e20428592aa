"""The first run of a foreign model, in a process of its own: where onnxruntime dies of it, nothing else does.

A segmentation fault cannot be caught. A forked process loads and runs the model once and says nothing: either it ends
by itself, and whatever Python can catch shows again in the caller's process, or it is killed, and that is an error.
Where a fork is not safe (other threads, other systems than Linux), a fresh interpreter does the same.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.bench.models.errors import SessionError

if TYPE_CHECKING:
    from convbn.bench.models.inputs import Array

__all__ = ["main", "survive"]

_CHILD = "from convbn.bench.proof.graph.first_run import main; main()"


def survive(
    model: bytes, feeds: Mapping[str, Array], *, folder: Path | None = None, level: str = "off"
) -> None:
    """Come back if the model can be loaded and run without the end of the process, with whatever outcome.

    Args:
        model: serialized.
        feeds: one input.
        folder: where its external data lies.
        level: of onnxruntime's optimiser, as in :func:`convbn.bench.runtimes.onnxruntime_session.load_session`.

    Raises:
        SessionError: the process was killed.
    """
    from convbn.bench.runtimes.onnxruntime_providers import import_onnxruntime

    import_onnxruntime("cpu")  # once, for the child and for its parent
    if sys.platform == "linux" and threading.active_count() == 1:
        status = _forked(model, feeds, folder, level)
    else:
        status = _spawned(model, feeds, folder, level)
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
        memory = ", as the system does where memory runs out" if -status == signal.SIGKILL else ""
        raise SessionError(f"onnxruntime ends the process that loads or runs it ({name}{memory})")


def _forked(model: bytes, feeds: Mapping[str, Array], folder: Path | None, level: str) -> int:
    with warnings.catch_warnings():
        # Python counts threads of libraries, too, which wait for work and hold nothing that the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            _silence()
            _run(model, feeds, folder, level)
        finally:
            os._exit(0)
    try:
        _, status = os.waitpid(child, 0)
    except ChildProcessError:  # the caller has children reaped by the system
        return 0
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status)


def _spawned(model: bytes, feeds: Mapping[str, Array], folder: Path | None, level: str) -> int:
    if not sys.executable:
        return 0
    given = pickle.dumps((model, dict(feeds), folder, level), protocol=5)
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CHILD],
        input=given,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode


def main() -> None:
    """What a fresh interpreter does: one run of what its parent sends."""
    given = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the parent's own making
    _no_core_dump()
    _run(*given)


def _run(model: bytes, feeds: Mapping[str, Array], folder: Path | None, level: str) -> None:
    from convbn.bench.runtimes.onnxruntime_session import load_session

    # The caller meets the same error in its own process.
    try:
        load_session(model, "model", folder=folder, level=level).run(feeds)
    except SessionError:
        return


def _silence() -> None:
    """Keep what a library or a fault handler writes away from the caller's terminal."""
    import faulthandler

    faulthandler.disable()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGILL):
        signal.signal(number, signal.SIG_DFL)
    _no_core_dump()


def _no_core_dump() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
