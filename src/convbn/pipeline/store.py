"""The store: results of steps in a plain folder, each under the hash of all that went into it.

::

    entries/ab/abc…/entry.json   what the step said, and the name, size and SHA-256 of each of its files
    entries/ab/abc…/…            those files
    locks/abcd.lock              held by whoever makes an entry whose key begins so
    making/abc…/                 an entry while it is made; it is renamed when it is whole
    plans/….json                 what the last run of a plan was made of

Any of it may be deleted while nothing runs. An entry whose bytes do not match their hashes counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from convbn.errors import FileAccessError
from convbn.export.files.atomic import (
    StagedFile,
    file_access,
    open_regular,
    reason,
    sha256_file,
    sync_folder,
    write_atomically,
)
from convbn.export.loading import remote
from convbn.pipeline.outcome import Output
from convbn.pipeline.planning.hashes import Hashes

__all__ = ["MANIFEST", "Entry", "Store"]

MANIFEST = "entry.json"
_FORMAT = 1
_FILE = re.compile(r"[0-9a-f]{64}/(?!\.\.?$|entry\.json$)[^/\\\0]+")
"""The hash and the name of a file of an entry: a manifest may have come from elsewhere."""

_BESIDE = (".data", ".json", ".html")
"""What the names of files end in that belong to a model."""

_LOCKED_DIGITS = 4
"""Digits of a key that share a lock: 65,536 locks, so that those of unlike steps seldom meet."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The result of one step.

    Attributes:
        folder: where its files lie; they must not be changed.
        files: of each, its size in bytes and its SHA-256.
        report: what the step said.
        seconds: that the step took.
    """

    folder: Path
    files: Mapping[str, tuple[int, str]]
    report: Mapping[str, Any]
    seconds: float

    def path(self, name: str) -> Path:
        """Of one of its files."""
        return self.folder / name

    def shown(self) -> dict[str, tuple[int, str]]:
        """The files that somebody may want to have; those whose names begin with a dot are for later steps."""
        return {name: facts for name, facts in self.files.items() if not name.startswith(".")}

    def deliver(self, target: str, *, replaces: Collection[str] | None = ()) -> tuple[Output, ...]:
        """Copy its files into a folder outside of the store or to a URL; those that are there stay.

        Each appears whole, weights and sidecars before the model that they belong to.

        Args:
            target: the folder or URL.
            replaces: names of files there that may be replaced; None: any.

        Raises:
            FileAccessError: another file has the name of one and is not to be replaced, or it cannot be written.
        """
        outputs = []
        files = self.shown()
        for name in sorted(files, key=lambda name: (not name.endswith(_BESIDE), name)):
            size, sha256 = files[name]
            place = f"{target}/{name}" if remote.is_url(target) else str(Path(target, name))
            copy = _put if remote.is_url(target) else _copy
            copy(self.folder / name, place, size, sha256, replaces is None or name in replaces)
            outputs.append(Output(remote.shown(place), size, sha256))
        return tuple(outputs)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """An entry of whatever files lie in a folder, which no store keeps."""
        files = {
            path.name: (path.stat().st_size, sha256_file(path)) for path in folder.iterdir() if path.is_file()
        }
        return cls(folder, files, {}, 0.0)


def _copy(source: Path, target: str, size: int, sha256: str, overwrite: bool) -> None:
    path = Path(target)
    with file_access(path.parent, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256:
        return
    for begun in StagedFile.beside(path):  # by a process that was killed
        begun.unlink(missing_ok=True)
    with open_regular(source) as file:
        write_atomically(path, lambda out: shutil.copyfileobj(file, out), overwrite=overwrite)


def _put(source: Path, url: str, size: int, sha256: str, overwrite: bool) -> None:
    there = remote.size_and_version(url)
    if there is not None and there[0] in (size, None) and remote.sha256(url) == sha256:
        return
    if there is not None and not overwrite:
        hint = "use --force to replace it"
        raise FileAccessError("already exists", source=remote.shown(url), hint=hint)
    remote.put(source, url)


class Store:
    """A folder of entries.

    Args:
        root: the folder; it is created when the first entry is made.
        hashes: of files that were looked at before.
    """

    def __init__(self, root: str | os.PathLike[str], hashes: Hashes | None = None) -> None:
        self.root = Path(os.path.abspath(root))
        self.hashes = Hashes() if hashes is None else hashes

    def find(self, key: str) -> Entry | None:
        """The entry of that key; None if there is none, or one whose bytes do not match their hashes."""
        try:
            entry = self._described(key, (self._folder(key) / MANIFEST).read_bytes())
            if entry is None or not all(
                self._matches(entry.path(name), *facts) for name, facts in entry.files.items()
            ):
                return None
            return entry
        except (OSError, FileAccessError):
            return None

    def look(self, key: str) -> Entry | None:
        """The entry of that key, whose files may have to be fetched with :meth:`obtain`."""
        return self.find(key)

    def obtain(self, key: str) -> Entry | None:
        """The entry of that key, whose lock is held, with its files."""
        return self.find(key)

    def bring(self, key: str) -> bool:
        """See to it that :meth:`find` finds the entry of that key, whose lock is not held; whether it does."""
        return self.find(key) is not None

    def prepare(self, keys: Iterable[str]) -> None:
        """Learn at once what there is of these."""

    def complete(self, keys: Iterable[str]) -> None:
        """See to it that every entry of these is where others look for it."""

    def note(self, name: str) -> bytes | None:
        """What was noted under that name, if something was."""
        try:
            return (self.root / "plans" / f"{name}.json").read_bytes()
        except OSError:
            return None

    def keep_note(self, name: str, content: bytes) -> None:
        """Note something that may be lost.

        Raises:
            FileAccessError: it cannot be written.
        """
        path = self.root / "plans" / f"{name}.json"
        with file_access(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, overwrite=True)

    def _described(self, key: str, text: bytes) -> Entry | None:
        """The entry that a manifest describes; None if that is not whole, or of another entry."""
        try:
            manifest = json.loads(text)
            if manifest.pop("sha256") != _digest(manifest) or manifest["key"] != key:
                return None
            files = {name: (int(size), str(sha)) for name, (size, sha) in manifest["files"].items()}
            if not all(_FILE.fullmatch(f"{sha}/{name}") for name, (_, sha) in files.items()):
                return None
            return Entry(self._folder(key), files, manifest["report"], manifest["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _matches(self, path: Path, size: int, sha256: str) -> bool:
        if path.stat().st_size != size:
            return False
        return self.hashes.of(path) == sha256

    def discard(self, key: str) -> bool:
        """Remove what lies under a key, whose lock is held; whether there was anything."""
        folder = self._folder(key)
        if not folder.exists():
            return False
        # Renamed first, so that a kill in between leaves no half of it there.
        trash = self._making(f"{key}.discarded")
        with file_access(folder, "removed"):
            shutil.rmtree(trash, ignore_errors=True)
            trash.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, trash)
            shutil.rmtree(trash)
        return True

    @contextmanager
    def lock(self, key: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold the lock of a key; gives False at once where another process holds it, unless that is waited for.

        It is the operating system's, so that it is free again when a process is killed.

        Raises:
            FileAccessError: the store cannot be written.
        """
        path = self.root / "locks" / f"{key[:_LOCKED_DIGITS]}.lock"
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield True
        finally:
            lock.release()

    @contextmanager
    def making(self, key: str) -> Iterator[Path]:
        """A folder for the files of an entry, whose lock is held; what is not published when the block ends goes.

        Raises:
            FileAccessError: the store cannot be written.
        """
        folder = self._making(key)
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            folder.mkdir(parents=True)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, key: str, *, kind: str, name: str, report: Mapping[str, Any], seconds: float) -> Entry:
        """Make an entry of the folder that :meth:`making` gave: flushed to the disk, then renamed.

        Args:
            key: whose lock is held.
            kind, name: of the step, for people.
            report: JSON-ready.
            seconds: that it took.

        Raises:
            FileAccessError: it cannot be written; then there is no entry.
        """
        with file_access(self.root, "written"):
            files = Entry.of(self._making(key)).files
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "key": key,
            "kind": kind,
            "name": name,
            "files": files,
            "report": report,
            "seconds": seconds,
        }
        manifest["sha256"] = _digest(manifest)
        self._enter(key, json.dumps(manifest).encode())
        return Entry(self._folder(key), files, report, seconds)

    def _enter(self, key: str, manifest: bytes) -> None:
        making, folder = self._making(key), self._folder(key)
        with file_access(self.root, "written"):
            (making / MANIFEST).write_bytes(manifest)
            for path in making.iterdir():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            sync_folder(making)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(making, folder)
            sync_folder(folder.parent)

    def check_writable(self) -> None:
        """Refuse a store that nothing can be put into.

        Raises:
            FileAccessError: it is on a read-only mount, full, somebody else's, or no folder.
        """
        probe = self.root / "making" / f".probe-{os.getpid()}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"\0")
            probe.unlink()
        except OSError as error:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def sweep(self) -> None:
        """Remove what processes that were killed had begun to make."""
        with suppress(OSError):
            for folder in (self.root / "making").iterdir():
                if not folder.name.startswith("."):
                    with self.lock(folder.name) as held:
                        if held:
                            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def _making(self, key: str) -> Path:
        return self.root / "making" / key

    def _unwritable(self, error: OSError) -> FileAccessError:
        hint = "name another folder with --store"
        return FileAccessError(f"the store cannot be written: {reason(error)}", source=self.root, hint=hint)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
