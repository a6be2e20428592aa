"""Files at URLs (``s3://``, ``gs://``, ``hf://`` …), by fsspec: fetched once, checked by hash, written whole.

Credentials are fsspec's affair: they come from where each of its file systems looks for them, and what a URL holds of
them is left out of every message and record.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convbn.errors import BadInputError, ConvBNError, FileAccessError, NotSupportedError
from convbn.export.files.atomic import sha256_file
from convbn.export.onnx_io.locations import external_locations

__all__ = ["exists", "fetch", "is_url", "listed", "put", "shown"]

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_RECORD = "fetched.json"


def is_url(text: object) -> bool:
    """Whether this names a file by a URL."""
    return isinstance(text, str) and _URL.match(text) is not None


def shown(url: str) -> str:
    """The URL without a user's name, password or query."""
    return re.sub(r"(?<=://)[^/@]*@", "", url).partition("?")[0]


def fetch(url: str) -> Path:
    """A local copy of a file, and beside it the files that an ONNX model keeps its weights in.

    A copy is used again while the file system says that the original is the same (size, time, ETag: fsspec's
    ``ukey``) and the copy still has the hash that it had. Copies lie below ``$CONVBN_CACHE`` or ``~/.cache/convbn``.

    Raises:
        FileAccessError: it is not there, or cannot be read.
        NotSupportedError: the package for this kind of URL is not installed.
        BadInputError: the model names files outside of its folder.
    """
    folder = _cache() / hashlib.sha256(shown(url).encode()).hexdigest()[:16]
    copy = folder / posixpath.basename(url.rstrip("/").partition("?")[0])
    with _reaching(url):
        system, path = _system(url)
        version = str(system.ukey(path))
    if _is_current(folder, version):
        return copy
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another process may look for it.
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        with _reaching(url):
            system.get_file(path, os.path.join(made, copy.name))
        for name in _data_files(Path(made, copy.name), url):
            Path(made, name).parent.mkdir(parents=True, exist_ok=True)
            with _reaching(f"{posixpath.dirname(url)}/{name}"):
                system.get_file(f"{posixpath.dirname(path)}/{name}", os.path.join(made, name))
        record = {"url": shown(url), "version": version, "sha256": _hashes(Path(made))}
        Path(made, _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        try:
            os.rename(made, folder)
        except OSError:  # another process was quicker
            if not _is_current(folder, version):
                raise
        else:
            os.mkdir(made)  # for the block to take away
    return copy


def put(local: str | os.PathLike[str], url: str) -> None:
    """Write a file to a URL, whole: file systems that can rename get it under another name first.

    Raises:
        FileAccessError: it cannot be written.
    """
    with _reaching(url, "written"):
        system, path = _system(url)
        system.makedirs(posixpath.dirname(path), exist_ok=True)
        with system.transaction:
            system.put_file(os.fspath(local), path)


def exists(url: str) -> bool:
    """Whether something is there."""
    with _reaching(url):
        system, path = _system(url)
        return bool(system.exists(path))


def listed(url: str) -> dict[str, str] | None:
    """The files below a folder or of a pattern, each URL by its relative name; None for the URL of a file."""
    with _reaching(url):
        system, path = _system(url)
        scheme = url[: url.index("://") + 3]
        if glob.has_magic(path):
            found = [str(name) for name in system.glob(path)]
            root = posixpath.dirname(re.split(r"[*?\[]", path)[0])
        elif system.isdir(path):
            found, root = [str(name) for name in system.find(path)], path
        else:
            return None
        return {posixpath.relpath(name, root): f"{scheme}{name}" for name in sorted(found)}


def _system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        hint = "pip install 'convbn[remote]'"
        raise NotSupportedError("files at URLs need fsspec", source=shown(url), hint=hint) from error
    system, path = fsspec.core.url_to_fs(url)
    return system, str(path)


@contextmanager
def _reaching(url: str, done: str = "read") -> Iterator[None]:
    """Whatever a file system raises is about this URL. Its text may hold credentials: the kind alone is told."""
    try:
        yield
    except ConvBNError:
        raise
    except ImportError as error:
        hint = f"pip install the package that fsspec names: {error}"
        raise NotSupportedError("its kind of URL needs a package", source=shown(url), hint=hint) from error
    except FileNotFoundError as error:
        raise FileAccessError("does not exist", source=shown(url)) from error
    except Exception as error:
        raise FileAccessError(f"cannot be {done}: {type(error).__name__}", source=shown(url)) from error


def _cache() -> Path:
    root = os.environ.get("CONVBN_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "convbn"
    )
    return Path(root, "remote")


def _is_current(folder: Path, version: str) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return bool(record["version"] == version and record["sha256"] == _hashes(folder))
    except (OSError, ValueError, KeyError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _RECORD)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _data_files(model: Path, url: str) -> list[str]:
    """The files beside an ONNX model that its weights lie in."""
    if model.suffix != ".onnx":
        return []
    names = [name for name in external_locations(model) if name]
    for name in names:
        if posixpath.isabs(name) or ".." in Path(name).parts or "\\" in name:
            raise BadInputError(f"keeps weights outside of its folder: {name}", source=shown(url))
    return names
