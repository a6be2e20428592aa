"""Processes of this machine that do steps: one a processor, and no more at once than its memory holds."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from convbn.common.text import clean
from convbn.pipeline.outcome import Outcome
from convbn.pipeline.runners.machine import Machine
from convbn.pipeline.runners.pool import Runner
from convbn.pipeline.step import Step

__all__ = ["LocalRunner"]

_GRACE = 3.0
"""Seconds in which a worker that is told to end can take away what it has begun to write."""

_AGAIN = 0.2
"""Seconds after which the machine is asked for again that another run has."""

_DIED = 70
"""Exit code of a step whose process died, as of any other bug."""

_SHARE = 0.8
"""Of the memory that is free when the run starts."""


class LocalRunner(Runner):
    """A pool of processes. Each imports what it needs once; one that dies costs only its step.

    Args:
        workers: how many; as many as this process may use processors without.
        memory: bytes that all steps together may hold by their estimates; a share of what is free without.
        retries: how often a step is tried again whose worker died.
        store: folder of results; None where no step has a key.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        memory: int | None = None,
        retries: int = 1,
        store: str | None = None,
    ) -> None:
        self.workers = workers or _processors()
        self.memory = int(_SHARE * free_memory()) if memory is None else memory
        self._retries = retries
        self._store = store
        # All that were started and not ended: a signal may come while one is neither idle nor busy.
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Step] = {}
        self._deaths: dict[Step, int] = {}
        self._again: list[Step] = []
        self._machine = Machine()

    @property
    def waiting(self) -> str | None:
        """What another run does meanwhile."""
        return self._machine.waiting

    def has_room(self, step: Step) -> bool:
        """While a step runs that must be alone there is none, in other runs on this machine too.

        What is too large for the memory runs by itself.
        """
        if self._again:
            return False
        if self._busy:
            if step.place.alone or any(running.place.alone for running in self._busy.values()):
                return False
            held = sum(running.memory for running in self._busy.values())
            if len(self._busy) >= self.workers or held + step.memory > self.memory:
                return False
        return self._machine.enter(alone=step.place.alone)

    def submit(self, step: Step) -> None:
        """Give a step to a worker. One that must be alone gets a fresh one, whose numbers of threads nobody limits."""
        if step.place.alone:
            worker = self._started(threads=None)
        elif self._idle:
            worker = self._idle.pop()
        else:
            worker = self._started(threads=max(1, _processors() // self.workers))
        self._busy[worker] = step
        worker.send(step)

    def _started(self, *, threads: int | None) -> _Worker:
        # A signal in between would leave a process that nobody knows of, and that the end of the run waits for.
        with _undisturbed():
            worker = _Worker(self._store, threads=threads)
            self._workers.append(worker)
        return worker

    def wait(self, seconds: float) -> list[tuple[Step, Outcome | None]]:
        """What workers answer, or how they died."""
        if self._again and not self._busy:  # perhaps there was too little memory: now there is all of it
            if not self._machine.enter(alone=self._again[-1].place.alone):
                time.sleep(min(seconds, _AGAIN))
                return []
            self.submit(self._again.pop())
        found: list[tuple[Step, Outcome | None]] = []
        answered = connection.wait([worker.connection for worker in self._busy], seconds)
        for worker in [one for one in self._busy if one.connection in answered]:
            step = self._busy.pop(worker)
            try:
                found.append((step, worker.answer()))
            except (EOFError, OSError):
                found += self._died(step, worker)
                continue
            if step.place.alone:
                worker.end()
                self._workers.remove(worker)
            else:
                self._idle.append(worker)
        if not self._busy:
            self._machine.leave()
        return found

    def _died(self, step: Step, worker: _Worker) -> list[tuple[Step, Outcome | None]]:
        """What is said of a step whose worker died; nothing if it is tried again."""
        cause = worker.bury()
        self._workers.remove(worker)
        self._deaths[step] = self._deaths.get(step, 0) + 1
        if self._deaths[step] <= self._retries:
            self._again.append(step)
            return []
        return [(step, Outcome(step.name, step.kind, step.model, "failed", 0.0, None, cause, _DIED))]

    def cancel(self) -> None:
        """End all workers; those that are at work take away first what they have begun to write."""
        workers, idle = self._workers, self._idle
        self._workers, self._busy, self._idle, self._again = [], {}, [], []
        for worker in workers:
            if worker not in idle:
                worker.terminate()
        for worker in workers:
            worker.end()
        self._machine.close()

    def close(self) -> None:
        """End the workers."""
        self.cancel()


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, store: str | None, *, threads: int | None) -> None:
        # What libraries print, and what a dying process says last.
        self._said = tempfile.NamedTemporaryFile(prefix="convbn-worker-", suffix=".log")  # noqa: SIM115
        context = get_context("spawn")
        self.connection, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, self._said.name, store, threads), name="convbn-worker"
        )
        try:
            self._process.start()
        except BaseException:  # where no signal can be held back
            if self._process.pid is not None:
                self._process.kill()
            raise
        there.close()

    def send(self, step: Step) -> None:
        with suppress(OSError):  # it died while it was idle: its answer will say so
            self.connection.send(step)

    def answer(self) -> Outcome | None:
        """What it says of its step; None while another process is at the same.

        Raises:
            EOFError, OSError: it is dead.
        """
        outcome: Outcome | None = self.connection.recv()
        return outcome

    def bury(self) -> str:
        """How it died, in a sentence."""
        _kill_group(self._process.pid)
        self._join()
        code = self._process.exitcode or 0
        how = f"ended with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        lines = Path(self._said.name).read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((clean(line) for line in reversed(lines) if line.strip()), "")
        hint = "; too little memory ends processes so, fewer workers need less" if code == -9 else ""
        self._said.close()
        return f"its process {how}{f': {last}' if last else ''}{hint}"

    def terminate(self) -> None:
        self._process.terminate()

    def end(self) -> None:
        """Let it go."""
        self._join()
        self._said.close()

    def _join(self) -> None:
        """Wait until the process is gone; one that does not go is killed, with those it started."""
        self.connection.close()
        self._process.join(_GRACE)
        if self._process.is_alive():
            _kill_group(self._process.pid)
            self._process.kill()
            self._process.join()


_STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block, and in a process that is started in it until it is at work.

    The terminal sends Ctrl-C to all processes of a command, and one whose parent stops in the midst of starting it
    would complain of what it was not told.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # or it is started in the block, and lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_group(leader: int | None) -> None:
    """End what a worker started and left behind."""
    if leader is not None and hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(leader, signal.SIGKILL)


def _serve(commands: Any, said: str, root: str | None, threads: int | None) -> None:
    """Do steps until the pipe is closed: the life of a worker."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C on the terminal goes to the parent, which decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    out = os.open(said, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from convbn.pipeline.perform import perform
    from convbn.pipeline.remote_store import opened

    store = None if root is None else opened(root)
    with suppress(EOFError, OSError):
        while True:
            commands.send(perform(commands.recv(), store))


def _die_with_parent() -> None:
    """A worker whose parent was killed ends at once, with what it started."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        _kill_group(os.getpid())
        os._exit(1)


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that processes started now could use: what the system has available, within the limit of the container."""
    available = 4 << 30
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        available = int(line.split()[1]) << 10
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        available = min(available, limit - used)
    return available
