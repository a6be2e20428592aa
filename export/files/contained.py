"""Opening a file by a name that is not trusted: only a regular file inside a given folder.

Links are refused, symbolic and hard ones alike, and each part of the path is opened relative to the one
before without following links, so that nothing can be swapped in between.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path, PurePosixPath

from convbn.errors import BadInputError
from convbn.export.files.atomic import reason

__all__ = ["open_inside"]


def open_inside(folder: Path, location: str, tensor: str) -> BufferedReader:
    """Open a file that must lie inside a folder, following no link.

    Args:
        folder: the model's folder, trusted.
        location: relative path with ``/``, untrusted.
        tensor: for the message.

    Raises:
        BadInputError: the path is absolute, climbs, crosses a link, or names no regular file.
    """
    parts = PurePosixPath(location).parts
    shown = f"external data {location!r} of tensor {tensor!r}"
    unsafe = PurePosixPath(location).is_absolute() or ".." in parts or "\\" in location or "\0" in location
    if not parts or unsafe or Path(location).drive:
        raise BadInputError(f"{shown} is not a path inside the model's folder", hint="it was not read")
    try:
        descriptor = _open_parts(folder, parts)
    except FileNotFoundError as error:
        raise BadInputError(f"{shown} is missing", hint=f"put it into {folder}") from error
    except OSError as error:
        hint = "links are not followed; put the file itself beside the model"
        raise BadInputError(f"{shown} cannot be opened: {reason(error)}", hint=hint) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{shown} is not a regular file")
    hint = "a second name may lie outside the model's folder; put a copy there"
    raise BadInputError(f"{shown} is a hard link", hint=hint)


def _open_parts(folder: Path, parts: tuple[str, ...]) -> int:
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if os.open not in os.supports_dir_fd:  # Windows: no relative opening, so links are looked for first
        path = folder.joinpath(*parts)
        if Path(os.path.realpath(path)) != Path(os.path.realpath(folder)).joinpath(*parts):
            raise OSError(0, "it is a link")
        return os.open(path, flags)
    flags |= os.O_NOFOLLOW
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            child = os.open(part, flags | os.O_DIRECTORY, dir_fd=parent)
            os.close(parent)
            parent = child
        return os.open(parts[-1], flags, dir_fd=parent)
    finally:
        os.close(parent)
