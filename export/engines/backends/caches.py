"""Files that builds and runs on one machine share: found by a key, locked, merged, replaced as a whole.

A cache holds what TensorRT wrote and nothing else, so that NVIDIA's own tools can use it. What it is valid
for is in its name: a cache of another version, GPU or driver is another file and never looked at.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from convbn.errors import FileAccessError
from convbn.export.engines.backends.gpus import Gpu
from convbn.export.files.atomic import file_access, write_atomically

__all__ = ["CacheFile", "cache_file"]

# A merge takes milliseconds; who waits longer meets a stopped process or a file system without locks.
_PATIENCE = 20.0
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class CacheFile:
    """One cache.

    Attributes:
        path: of the file; the lock is beside it.
    """

    path: Path

    def read(self) -> bytes | None:
        """The content, which is always a whole one; None if there is none or it is absurdly large.

        Raises:
            FileAccessError: it is there and cannot be read.
        """
        data = b""
        with file_access(self.path), contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        return data if 0 < len(data) <= _MAX_BYTES else None

    def update(self, merge: Callable[[bytes | None], bytes]) -> None:
        """Replace the content by a merge with what is there now, while nobody else can.

        Args:
            merge: from the content, if there is any, to the new one.

        Raises:
            FileAccessError: the folder cannot be written, or the lock is not to be had.
        """
        with file_access(self.path.parent, "made"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_name(self.path.name + ".lock")):
            write_atomically(self.path, merge(self.read()), overwrite=True)


def cache_file(
    folder: str | os.PathLike[str], kind: str, version: str, gpu: Gpu, *, part: str = ""
) -> CacheFile:
    """The cache for one backend version on one kind of GPU under one driver.

    Args:
        folder: where caches are, or ``auto`` for the user's cache folder.
        kind: ``timing`` or ``runtime``; part of the name.
        version: of the backend.
        gpu: the GPU here.
        part: what else the content depends on.
    """
    major, minor = gpu.compute_capability
    names = (kind, version, f"sm{major}{minor}", gpu.name, f"driver{gpu.driver or '-unknown'}", part)
    name = "-".join(re.sub(r"[^\w.]+", "_", text) for text in names if text)
    root = _user_folder() / "convbn" if os.fspath(folder) == "auto" else Path(folder)
    return CacheFile(root / f"{name}.cache")


def _user_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system takes back when its holder dies. The file itself stays."""
    with file_access(path, "locked"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise FileAccessError("is held by another process", source=path, hint="try again")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
