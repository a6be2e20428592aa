"""Reading and writing whole files, so that a file on disk is either the old one or the new one.

Every artefact of convbn is written here: into a temporary file beside the target, flushed to the disk,
and only then renamed over it. A kill, a full disk or an exception leaves the target as it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeAlias

from convbn.common.text import did_you_mean
from convbn.errors import FileAccessError

__all__ = [
    "Content",
    "StagedFile",
    "check_target",
    "file_access",
    "open_regular",
    "reason",
    "sha256_file",
    "sync_folder",
    "write_atomically",
]

Content: TypeAlias = bytes | memoryview | Callable[[BinaryIO], object]

#: Files of a folder that are held against a name that is none of them.
_LOOKED_AT = 1000
# A file system without hard links answers with one of these.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}


@contextmanager
def file_access(path: str | os.PathLike[str], done: str = "read") -> Iterator[None]:
    """An error of the operating system inside the block is a FileAccessError: PATH cannot be DONE, and why."""
    try:
        yield
    except OSError as error:
        raise FileAccessError(f"cannot be {done}: {reason(error)}", source=path) from error


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file to read it.

    Raises:
        FileAccessError: it is missing, a folder, a device, or a pipe, which would wait for its writer.
    """
    with file_access(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError as error:
            raise FileAccessError("does not exist", source=path, hint=_meant(Path(path))) from error
        if stat.S_ISDIR(mode):
            raise FileAccessError("is a folder, not a file", source=path)
        if not stat.S_ISREG(mode):
            raise FileAccessError("is a device or a pipe, not a regular file", source=path)
        return open(path, "rb")


def _meant(path: Path) -> str | None:
    """The file of the folder that is most like one that is not there."""
    with suppress(OSError):
        return did_you_mean(path.name, (entry.name for entry in islice(os.scandir(path.parent), _LOOKED_AT)))
    return None


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, read in pieces.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileAccessError: the file cannot be read.
    """
    with file_access(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Resolve an output path and refuse early what :func:`write_atomically` would refuse late.

    Args:
        path: where a file is to be written. A symbolic link is followed: the file it points to is
            the target, the link stays.
        overwrite: whether an existing file may be replaced.

    Returns:
        The resolved target.

    Raises:
        FileAccessError: the target exists and `overwrite` is false, is a folder or a device, or its
            folder is missing or not writable.
    """
    target = Path(os.path.realpath(path))
    mode = None
    with file_access(path, "written"), suppress(FileNotFoundError):
        mode = target.lstat().st_mode
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise FileAccessError("is a folder, not a file", source=path, hint="name a file in it")
        if not stat.S_ISREG(mode):
            raise FileAccessError("is a device, pipe or dangling link, not a regular file", source=path)
        if not overwrite:
            raise FileAccessError("already exists", source=path, hint="use --force to replace it")
    folder = target.parent
    if not folder.is_dir():
        raise FileAccessError(f"its folder {folder} does not exist", source=path, hint="create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileAccessError(f"its folder {folder} is not writable", source=path)
    return target


def write_atomically(path: str | os.PathLike[str], content: Content, *, overwrite: bool) -> None:
    """Write a file that appears complete or not at all.

    Args:
        path: the target; a symbolic link is followed.
        content: the bytes, or what is called once with a writable binary file in the target's folder.
        overwrite: whether an existing file is replaced. Its permissions are kept.

    Raises:
        FileAccessError: see :func:`check_target`, or writing failed (disk full, quota, I/O error).
            The target is then what it was before and no temporary file is left.
    """
    target = check_target(path, overwrite=overwrite)
    with StagedFile(target, path) as staged:
        staged.write(content)
        staged.move(target, overwrite=overwrite)


def _prefix(target: Path) -> str:
    # A name of 255 bytes leaves no room for a suffix, so only its start goes into the temporary name.
    return f".{target.name[:48]}."


class StagedFile:
    """A file under a temporary name beside its target, until it is moved into place or dropped.

    Args:
        target: resolved path, whose folder and name the temporary one follows.
        shown: what errors call it.

    Attributes:
        path: the temporary file, which exists once :meth:`write` was called.
    """

    def __init__(self, target: Path, shown: str | os.PathLike[str]) -> None:
        self.path = target.with_name(f"{_prefix(target)}{secrets.token_hex(6)}.tmp")
        self._shown = shown

    @staticmethod
    def beside(target: Path) -> list[Path]:
        """Every staged file for a target, of other processes too."""
        return [path for path in target.parent.iterdir() if path.name.startswith(_prefix(target))]

    def write(self, content: Content) -> None:
        """Create the file, fill it and flush it to the disk.

        Args:
            content: the bytes, or what writes them into an open file.

        Raises:
            FileAccessError: writing failed.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with file_access(self._shown, "written"), os.fdopen(os.open(self.path, flags, 0o666), "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def move(self, target: Path, *, overwrite: bool) -> None:
        """Give the file its name; with ``overwrite`` it replaces what has that name and takes its permissions.

        Raises:
            FileAccessError: the name is taken, or the file system refuses.
        """
        with file_access(self._shown, "written"):
            _move(self.path, target, self._shown, overwrite=overwrite)
        sync_folder(target.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with file_access(self._shown, "written"):
                self.path.unlink(missing_ok=True)
        except FileAccessError:
            if error is None:
                raise


def reason(error: OSError) -> str:
    """The operating system's own words for an error, without errno and path."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def _move(temporary: Path, target: Path, shown: str | os.PathLike[str], *, overwrite: bool) -> None:
    if overwrite:
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
        return
    try:
        # Unlike a rename, a link refuses to replace what another process wrote in the meantime.
        os.link(temporary, target)
    except FileExistsError as error:
        raise FileAccessError("already exists", source=shown, hint="use --force to replace it") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(temporary, target)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    # The rename itself lives in the folder. Windows cannot open one, and some network file systems
    # cannot flush one; the file's bytes are safe either way.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
