"""A store at a URL: entries whose bytes lie there under their hashes, worked on in a folder of this machine.

::

    objects/ab/abc…        the bytes of a file, under their own SHA-256
    entries/ab/abc….json   the manifest of an entry: which files it has, and the hash of itself
    plans/….json           what the last run of a plan was made of

What stores objects can neither rename nor lock. So nothing rests on that: the objects of an entry are written first and
never another content under their names, its manifest last; whoever fetches one holds all of it against the hashes.
Locks are those of the folder: two runs on one machine share the work, two machines may do a step at the same time, and
either result is whole (docs/decisions/0015).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convbn.errors import FileAccessError
from convbn.export.files.atomic import sha256_file
from convbn.export.loading import remote
from convbn.pipeline.planning.hashes import Hashes
from convbn.pipeline.store import MANIFEST, Entry, Store

__all__ = ["RemoteStore", "opened"]


def opened(where: str, *, hashed: bool = False) -> Store:
    """The store in a folder or at a URL.

    Args:
        where: the folder or URL.
        hashed: keep hashes of files there, for a process that asks for many.
    """
    root = _folder_of(where) if remote.is_url(where) else Path(where)
    hashes = Hashes(root / "hashes.json") if hashed else None
    return RemoteStore(where, hashes) if remote.is_url(where) else Store(root, hashes)


def _folder_of(url: str) -> Path:
    return remote.cache() / "stores" / hashlib.sha256(remote.shown(url).encode()).hexdigest()[:16]


class RemoteStore(Store):
    """A store at a URL, with a folder below :func:`convbn.export.loading.remote.cache` in which it is worked on.

    Args:
        url: of a folder.
        hashes: as for :class:`Store`.
    """

    def __init__(self, url: str, hashes: Hashes | None = None) -> None:
        super().__init__(_folder_of(url), hashes)
        self._url = url.rstrip("/")
        self._told: dict[str, Entry] = {}
        self._spoilt: set[str] = set()

    def look(self, key: str) -> Entry | None:
        """The entry of that key: here, or there when :meth:`prepare` was called."""
        return self.find(key) or self._told.get(key)

    def obtain(self, key: str) -> Entry | None:
        """The entry of that key, whose lock is held; its files are fetched and held against their hashes.

        Raises:
            FileAccessError: the URL cannot be read, or the folder not be written.
        """
        entry = self.find(key)
        if entry is not None:
            return entry
        self.discard(key)
        manifest = remote.read(self._manifest(key))
        if manifest is None:
            return None
        described = self._described(key, manifest)
        if described is None or not self._fetched(key, described, manifest):
            self._spoilt.add(key)
            return None
        return described

    def bring(self, key: str) -> bool:
        """See to it that :meth:`find` finds the entry of that key, whose lock is not held; whether it does."""
        if self.find(key) is not None:
            return True
        with self.lock(key, wait=True):
            return self.obtain(key) is not None

    def discard(self, key: str) -> bool:
        """Remove what lies here under a key; whether there was anything, here or there, that did not match."""
        return super().discard(key) or key in self._spoilt

    def publish(self, key: str, **facts: Any) -> Entry:
        """Make an entry here, and then there.

        Raises:
            FileAccessError: it cannot be written; one that is here is brought there by the next run.
        """
        entry = super().publish(key, **facts)
        self._send(key, entry)
        return entry

    def prepare(self, keys: Iterable[str]) -> None:
        """Read the manifests of all of these that are there and not here."""
        there = self._there()
        wanted = {self._manifest(key): key for key in keys if key in there and self.find(key) is None}
        for url, manifest in remote.read_all(list(wanted)).items():
            entry = self._described(wanted[url], manifest)
            if entry is not None:
                self._told[wanted[url]] = entry

    def complete(self, keys: Iterable[str]) -> None:
        """Bring there what is here alone: a run was stopped in between, or somebody has deleted it."""
        there = self._there()
        for key in keys:
            entry = None if key in there else self.find(key)
            if entry is not None:
                self._send(key, entry)

    def check_writable(self) -> None:
        """Refuse a URL that nothing can be written to.

        Raises:
            FileAccessError: that, or the folder cannot be written.
        """
        super().check_writable()
        self._write("store.json", json.dumps({"format": 1}).encode())

    def note(self, name: str) -> bytes | None:
        """What was noted there under that name, if something was."""
        return remote.read(f"{self._url}/plans/{name}.json")

    def keep_note(self, name: str, content: bytes) -> None:
        """Note something there."""
        self._write(f"plans/{name}.json", content)

    def _there(self) -> set[str]:
        names = remote.listed(f"{self._url}/entries") or {}
        return {posixpath.basename(name).removesuffix(".json") for name in names}

    def _fetched(self, key: str, entry: Entry, manifest: bytes) -> bool:
        """Whether all files of an entry were there and as they must be; then it is here."""
        with self.making(key) as folder:
            for name, (size, sha256) in entry.files.items():
                path = folder / name
                try:
                    remote.get(self._object(sha256), path)
                except FileAccessError as error:
                    if remote.is_absent(error):
                        return False
                    raise
                if path.stat().st_size != size or sha256_file(path) != sha256:
                    return False
            self._enter(key, manifest)
        return True

    def _send(self, key: str, entry: Entry) -> None:
        for name, (_, sha256) in entry.files.items():
            remote.put(entry.path(name), self._object(sha256))
        remote.put(entry.path(MANIFEST), self._manifest(key))

    def _write(self, name: str, content: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            remote.put(file.name, f"{self._url}/{name}")

    def _object(self, sha256: str) -> str:
        return f"{self._url}/objects/{sha256[:2]}/{sha256}"

    def _manifest(self, key: str) -> str:
        return f"{self._url}/entries/{key[:2]}/{key}.json"
