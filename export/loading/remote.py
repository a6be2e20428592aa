"""Files at URLs (``s3://``, ``gs://``, ``hf://`` …), by fsspec: fetched once, checked by hash, written whole.

Credentials are fsspec's affair: they come from where each of its file systems looks for them, and what a URL holds of
them is left out of every message and record. So is the text of what a file system raises, which may repeat it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import posixpath
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from convbn.errors import BadInputError, ConvBNError, FileAccessError, NotSupportedError
from convbn.export.files.atomic import sha256_file
from convbn.export.onnx_io.locations import external_locations

__all__ = [
    "cache",
    "exists",
    "fetch",
    "fetched",
    "get",
    "has_copy",
    "is_absent",
    "is_pattern",
    "is_url",
    "listed",
    "put",
    "read",
    "read_all",
    "sha256",
    "shown",
    "size_and_version",
]

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_RECORD = "fetched.json"
_ABSENT = "does not exist"
_SHOWN_WHILE_WRITTEN = {"file", "local", "sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs"}
"""Kinds of file systems in which others see half a file; what stores objects shows them whole."""
_UNSTEADY = {"name", "url", "last_commit", "security"}
"""Facts of a file that change although it does not: where a request was led to, what was found out meanwhile."""
_HTTP_SAYS = {"ETag", "Last-Modified", "Content-MD5", "Digest"}

Hashed = Callable[[Path], str]


def is_url(text: object) -> bool:
    """Whether this names a file by a URL."""
    return isinstance(text, str) and _URL.match(text) is not None


def shown(url: str) -> str:
    """The URL without a user's name, password or query; a path as it is."""
    if not is_url(url):
        return url
    return re.sub(r"(?<=://)[^/]*@", "", url).partition("?")[0]


def is_pattern(url: str) -> bool:
    """Whether this URL has ``*``, ``[`` or ``?`` in its path; over HTTP the last begins a query."""
    path = url.partition("://")[2]
    return glob.has_magic(path.partition("?")[0] if url.lower().startswith("http") else path)


def fetch(url: str, hashed: Hashed = sha256_file) -> Path:
    """A local copy of a file, and beside it the files that an ONNX model keeps its weights in; or of a folder.

    A copy is used again while the file system says that the original is the same (size, time, ETag) and the copy still
    has the hash that it had. Copies lie below :func:`cache`.

    Args:
        url: of the file or folder.
        hashed: the SHA-256 of a local file.

    Raises:
        FileAccessError: it is not there, or cannot be read.
        NotSupportedError: the package for this kind of URL is not installed.
        BadInputError: the model names files outside of its folder.
    """
    copy = _copy(url)
    folder = copy.parent
    with _reaching(url):
        system, path = _system(url)
        inside = _inside(system, path)
        version = _version(system, inside)
    if _has(folder, "version", version, hashed):
        return copy
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another process may look for it.
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        whole = Path(made, copy.name)
        for name in inside:
            place = whole / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with _reaching(url):
                system.get_file(f"{path}/{name}" if name else path, str(place))
        for name in _data_files(whole, url):
            Path(made, name).parent.mkdir(parents=True, exist_ok=True)
            with _reaching(f"{posixpath.dirname(url)}/{name}"):
                system.get_file(f"{posixpath.dirname(path)}/{name}", os.path.join(made, name))
        record = {"url": shown(url), "version": version, "sha256": _digest(Path(made), sha256_file)}
        Path(made, _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        try:
            os.rename(made, folder)
        except OSError:  # another process was quicker
            if not _has(folder, "version", version, hashed):
                raise
        else:
            os.mkdir(made)  # for the block to take away
    return copy


def fetched(url: str, sha256: str | None = None, hashed: Hashed = sha256_file) -> tuple[Path, str]:
    """A local copy, and one hash of all its files.

    Args:
        url: of a file or folder.
        sha256: what the hash is to be. A copy that has it is used without asking whether the original is the same.
        hashed: the SHA-256 of a local file.

    Raises:
        BadInputError: there is no copy of that hash, and the original has another.
        FileAccessError, NotSupportedError: as for :func:`fetch`.
    """
    copy = _copy(url)
    if sha256 is not None and has_copy(url, sha256, hashed):
        return copy, sha256
    found = _digest(fetch(url, hashed).parent, hashed)
    if sha256 not in (None, found):
        hint = "run it again once nobody writes to it"
        raise BadInputError("changed since it was looked at", source=shown(url), hint=hint)
    return copy, found


def has_copy(url: str, sha256: str, hashed: Hashed = sha256_file) -> bool:
    """Whether the local copy has this hash."""
    return _has(_copy(url).parent, "sha256", sha256, hashed)


def put(local: str | os.PathLike[str], url: str) -> None:
    """Write a file to a URL, whole: where others would see half of it, it gets another name first.

    Raises:
        FileAccessError: it cannot be written.
    """
    with _reaching(url, "written"):
        system, path = _system(url)
        if not _kinds(system) & _SHOWN_WHILE_WRITTEN:
            system.put_file(os.fspath(local), path)
            return
        system.makedirs(posixpath.dirname(path), exist_ok=True)
        begun = f"{posixpath.dirname(path)}/.{secrets.token_hex(6)}.tmp"
        try:
            system.put_file(os.fspath(local), begun)
            system.mv(begun, path)
        except BaseException:
            with suppress(Exception):
                system.rm_file(begun)
            raise


def read(url: str) -> bytes | None:
    """The bytes of a small file; None if there is none."""
    try:
        with _reaching(url):
            system, path = _system(url)
            return bytes(system.cat_file(path))
    except FileAccessError as error:
        if is_absent(error):
            return None
        raise


def read_all(urls: Sequence[str]) -> dict[str, bytes]:
    """The bytes of many small files of one file system, as far as they can be read."""
    if not urls:
        return {}
    with _reaching(urls[0]):
        system, _ = _system(urls[0])
        paths = {str(system._strip_protocol(url)): url for url in urls}
        found = system.cat(list(paths), on_error="omit")
    return {paths[path]: content for path, content in found.items()}


def get(url: str, local: Path) -> None:
    """Write a file's bytes into a local one, without keeping a copy.

    Raises:
        FileAccessError: there is none, or it cannot be read.
    """
    with _reaching(url):
        system, path = _system(url)
        system.get_file(path, str(local))


def sha256(url: str) -> str:
    """The hash of a file, which is read for it."""
    with _reaching(url):
        system, path = _system(url)
        with system.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def size_and_version(url: str) -> tuple[int | None, str] | None:
    """The size of a file, and a text that is another once the file is another; None if there is no file."""
    try:
        with _reaching(url):
            system, path = _system(url)
            facts = {"": system.info(path)}
            return facts[""]["size"], _version(system, facts)
    except FileAccessError as error:
        if is_absent(error):
            return None
        raise


def exists(url: str) -> bool:
    """Whether something is there."""
    with _reaching(url):
        system, path = _system(url)
        return bool(system.exists(path))


def listed(url: str) -> dict[str, str] | None:
    """The files below a folder or of a pattern, each URL by its relative name; None for the URL of a file."""
    base, _, pattern = url.rstrip("/").rpartition("/") if is_pattern(url) else (url.rstrip("/"), "", "")
    while pattern and is_pattern(base):
        base, _, part = base.rpartition("/")
        pattern = f"{part}/{pattern}"
    with _reaching(url):
        system, root = _system(base)
        if pattern:
            found = [str(name) for name in system.glob(f"{root.rstrip('/')}/{pattern}")]
        elif system.isdir(root):
            found = [str(name) for name in system.find(root)]
        else:
            return None
        names = sorted(posixpath.relpath(name, root) for name in found)
    return {name: f"{base}/{name}" for name in names}


def cache() -> Path:
    """The folder for copies, ``$CONVBN_CACHE`` or ``~/.cache/convbn``."""
    root = os.environ.get("CONVBN_CACHE")
    return Path(root or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "convbn"))


def _system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        hint = "pip install 'convbn[remote]'"
        raise NotSupportedError("files at URLs need fsspec", source=shown(url), hint=hint) from error
    system, path = fsspec.core.url_to_fs(url)
    system.invalidate_cache()  # others write there too
    return system, str(path)


def _kinds(system: Any) -> set[str]:
    return {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)


def _inside(system: Any, path: str) -> dict[str, Mapping[str, Any]]:
    """What the file system knows of a file, under an empty name; of a folder's files under their names in it."""
    facts = system.info(path)
    if facts["type"] != "directory":
        return {"": facts}
    found = system.find(path, detail=True)
    return {posixpath.relpath(name, path): found[name] for name in sorted(found)}


def _version(system: Any, files: Mapping[str, Mapping[str, Any]]) -> str:
    """A text that stays the same as long as the files do, as far as their file system says that."""
    if "http" in _kinds(system) and not all(_HTTP_SAYS & facts.keys() for facts in files.values()):
        return secrets.token_hex()  # nobody says it
    told = {
        name: sorted((key, str(value)) for key, value in facts.items() if key not in _UNSTEADY)
        for name, facts in files.items()
    }
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def is_absent(error: FileAccessError) -> bool:
    """Whether it says that there is no such file."""
    return error.cause == _ABSENT


@contextmanager
def _reaching(url: str, done: str = "read") -> Iterator[None]:
    """Whatever a file system raises is about this URL. Its text may hold credentials: the kind alone is told."""
    try:
        yield
    except ConvBNError:
        raise
    except ImportError as error:
        hint = f"pip install the package that fsspec names: {error}"
        raise NotSupportedError("its kind of URL needs a package", source=shown(url), hint=hint) from None
    except FileNotFoundError:
        raise FileAccessError(_ABSENT, source=shown(url)) from None
    except Exception as error:
        raise FileAccessError(f"cannot be {done}: {type(error).__name__}", source=shown(url)) from None


def _copy(url: str) -> Path:
    """Where the copy of a file or folder lies, alone in a folder but for the record and the weights of a model."""
    folder = cache() / "remote" / hashlib.sha256(shown(url).encode()).hexdigest()[:16]
    return folder / (posixpath.basename(shown(url).rstrip("/")) or "root")


def _has(folder: Path, key: str, value: str, hashed: Hashed) -> bool:
    """Whether a copy is recorded with this version or hash, and its files still have the hash that they had."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return bool(record[key] == value and record["sha256"] == _digest(folder, hashed))
    except (OSError, FileAccessError, ValueError, KeyError, TypeError):
        return False


def _digest(folder: Path, hashed: Hashed) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _RECORD)
    told = {path.relative_to(folder).as_posix(): hashed(path) for path in files}
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _data_files(model: Path, url: str) -> list[str]:
    """The files beside an ONNX model that its weights lie in."""
    if model.suffix != ".onnx":
        return []
    names = [name for name in external_locations(model) if name]
    for name in names:
        if posixpath.isabs(name) or ".." in Path(name).parts or "\\" in name:
            raise BadInputError(f"keeps weights outside of its folder: {name}", source=shown(url))
    return names
