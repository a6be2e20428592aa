"""Work in a process of its own, forked from one that has the heavy imports, with a limit on its time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

__all__ = ["PRELOAD", "PYTHONPATH", "isolated"]

PRELOAD = ("coverage_report.preload",)
GRACE_S = 10.0
ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tools", "tests"))
"""Where a process of its own finds convbn as it stands here, this package, and the networks of the tests."""


def isolated(
    target: Callable[..., None], arguments: tuple[Any, ...], *, timeout_s: float
) -> tuple[dict[str, Any], str]:
    """Call ``target(*arguments, sender)`` in a process; what it sends, and how it ended if not by itself.

    Args:
        target: of a module that ``tools/`` or ``tests/`` has; it sends dicts, which become one, and closes the sender.
        arguments: they are pickled.
        timeout_s: what was sent until then counts, and the process is ended.
    """
    os.environ["PYTHONPATH"] = PYTHONPATH  # the server sees no sys.path of ours
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(PRELOAD))
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=target, args=(*arguments, sender))
    process.start()
    sender.close()
    facts, done = _received(receiver, monotonic() + timeout_s)
    process.join(GRACE_S if done else 0)
    ended = "" if done else f"not done in {timeout_s:g} s"
    if done and process.exitcode:
        ended = f"the process ended with exit code {process.exitcode} (crashed, or killed for memory)"
    process.kill()
    process.join()
    return facts, ended


def _received(receiver: Connection, deadline: float) -> tuple[dict[str, Any], bool]:
    """What came until the other side closed, and whether it did before the deadline."""
    facts: dict[str, Any] = {}
    while receiver.poll(max(0.0, deadline - monotonic())):
        try:
            facts |= receiver.recv()
        except EOFError:
            return facts, True
    return facts, False
