"""SHA-256 of files, computed once as long as a file stays as it is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from convbn.errors import ConvBNError, FileAccessError
from convbn.export.files.atomic import file_access, sha256_file, write_atomically
from convbn.export.loading import remote

__all__ = ["Hashes"]

_SETTLED = 2.0
"""Seconds after which a further change of a file shows in its times on every file system."""

_THREADS = 4


class Hashes:
    """Hashes by path, with what the file system said of the file when it was read: size, times, number.

    The time of the last change of state (ctime) is among them, which no program can set. A file that changed while or
    just before it was read is read again next time.

    Args:
        path: where they are kept between runs; None: nowhere.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, tuple[list[int | str], str]] = {}
        self._external: dict[str, list[str]] = {}
        self._changed = False
        if path is not None:
            with suppress(
                OSError, ValueError, TypeError, AttributeError
            ):  # a cache that cannot be read is none
                kept = json.loads(path.read_text(encoding="utf-8"))
                self._known = {name: (list(seen), str(sha)) for name, (seen, sha) in kept["files"].items()}
                self._external = {sha: list(names) for sha, names in kept["external"].items()}

    def of(self, path: str | os.PathLike[str]) -> str:
        """The hash of a file, or of one at a URL, 64 hexadecimal digits.

        Raises:
            FileAccessError: it cannot be read.
        """
        name = remote.shown(str(path)) if remote.is_url(path) else os.path.abspath(path)
        seen, settled = _seen(path)
        known = self._known.get(name)
        if known is not None and known[0] == seen:
            return known[1]
        sha256 = remote.sha256(str(path)) if remote.is_url(path) else sha256_file(path)
        after, settled = _seen(path)
        if after == seen and time.time() - settled > _SETTLED:
            self._known[name] = (seen, sha256)
            self._changed = True
        return sha256

    def external(self, path: str) -> list[str]:
        """The files of an ONNX model's external data, by their paths; each content is looked into once.

        Raises:
            FileAccessError: it cannot be read.
        """
        sha256 = self.of(path)
        names = self._external.get(sha256)
        if names is None:
            from convbn.export.onnx_io.locations import external_locations

            names = self._external[sha256] = external_locations(path)
            self._changed = True
        return [os.path.join(os.path.dirname(path), name) for name in names]

    def prepare(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Hash files in several threads, fetch those at URLs; what cannot be read is left to whoever asks for it."""

        def hashed(path: str | os.PathLike[str]) -> None:
            with suppress(ConvBNError):
                if remote.is_url(path):
                    remote.fetch(str(path), self.of)
                else:
                    self.of(path)

        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(hashed, paths))

    def keep(self) -> None:
        """Write them to where they are kept; where that is not possible they are computed again next time."""
        if self._path is not None and self._changed:
            kept = {"files": self._known, "external": self._external}
            with suppress(FileAccessError):
                write_atomically(self._path, json.dumps(kept).encode(), overwrite=True)


def _seen(path: str | os.PathLike[str]) -> tuple[list[int | str], float]:
    """What tells a file from what it was, and when it was changed; who stores objects sees every change of one."""
    if remote.is_url(path):
        there = remote.size_and_version(str(path))
        if there is None:
            raise FileAccessError("does not exist", source=remote.shown(str(path)))
        return [there[1]], 0.0
    with file_access(path):
        status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino], status.st_ctime_ns / 1e9
