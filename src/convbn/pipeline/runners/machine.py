"""The machine, which all runs of one user share: either steps of any of them, or one that measures and nothing else.

In a folder of the user among the temporary files lie ``measuring.lock``, held by who measures or waits to do so, and a
file for each run that does other steps, locked while it does. The locks are the operating system's: a process that is
killed holds none.
"""

from __future__ import annotations

import math
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable
from getpass import getuser
from pathlib import Path

from filelock import FileLock, Timeout

from convbn.common.closing import Closing
from convbn.errors import FileAccessError
from convbn.export.files.atomic import file_access, reason

__all__ = ["Machine"]

_AGAIN = 0.2


class Machine(Closing):
    """One run's part of the machine.

    Attributes:
        waiting: what it waits for, in a sentence; None if it does not.
    """

    def __init__(self) -> None:
        self._folder = _folder()
        self._gate = FileLock(self._folder / "measuring.lock")
        self._own = FileLock(self._folder / f"steps-{os.getpid()}-{secrets.token_hex(4)}.lock")
        self.waiting: str | None = None

    def enter(self, *, alone: bool) -> bool:
        """Begin a step, or measure; whether that can be done now. It is asked for again until it can.

        Steps begin only where nobody measures or waits to do so, so that who waits is not overtaken for ever.

        Args:
            alone: to measure. This run must do nothing else then.
        """
        if alone:
            self._give_back(self._own)
        try:
            self._gate.acquire(timeout=0)
        except Timeout:
            self.waiting = "another run measures on this machine"
            return False
        except OSError as error:
            raise FileAccessError(f"cannot be written: {reason(error)}", source=self._folder) from error
        if alone and self._others():
            self.waiting = "to measure, until other runs on this machine end the steps that they have begun"
            return False
        if not alone:
            self._own.acquire(timeout=0)
            self._give_back(self._gate)
        self.waiting = None
        return True

    def wait(
        self,
        *,
        alone: bool = False,
        tell: Callable[[str], object] = lambda _: None,
        most: float = math.inf,
    ) -> bool:
        """Begin as soon as that can be done; whether it could.

        Args:
            alone: to measure.
            tell: is told what is waited for, each time that this is something else.
            most: seconds after which it is given up.
        """
        told, end = None, time.monotonic() + most
        while not self.enter(alone=alone):
            if time.monotonic() > end:
                self.leave()
                return False
            if self.waiting is not None and self.waiting != told:
                told = self.waiting
                tell(told)
            time.sleep(_AGAIN)
        return True

    def leave(self) -> None:
        """All steps of this run are done for the moment."""
        self._give_back(self._gate)
        self._give_back(self._own)

    def close(self) -> None:
        """Hold nothing any more."""
        self.leave()

    def _others(self) -> bool:
        """Whether another run does steps. Files of runs that have ended are taken away: none begins meanwhile."""
        for path in self._folder.glob("steps-*.lock"):
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return True
            path.unlink(missing_ok=True)
            lock.release()
        return False

    def _give_back(self, lock: FileLock) -> None:
        if lock.is_locked:
            lock.release(force=True)


def _folder() -> Path:
    """A folder for nobody but this user.

    Raises:
        FileAccessError: somebody else has made it, or nothing can be written there.
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else getuser()
    folder = Path(tempfile.gettempdir(), f"convbn-{user}")
    with file_access(folder, "written"):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        hint = "remove it, or set TMPDIR to another folder"
        raise FileAccessError("is not a folder of this user", source=folder, hint=hint)
    return folder
