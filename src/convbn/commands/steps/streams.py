"""Standard output and standard error, whatever they are: closed, full, or of an encoding without some letters."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from convbn.errors import FileAccessError

__all__ = ["open_streams", "silence", "writing_stdout"]

_NAME = "standard output"


def open_streams(*, needed: bool) -> None:
    """Give closed streams a place to go to, so that no file that is opened later gets their number.

    Args:
        needed: whether there is something to say on standard output.

    Raises:
        FileAccessError: there is, and it is closed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for the whole process
            if name == "stdout" and needed:
                raise FileAccessError("is closed", source=_NAME, hint="open it, or say --quiet")


@contextmanager
def writing_stdout() -> Iterator[None]:
    """What cannot be written inside the block is a FileAccessError; a reader that went away is not.

    Raises:
        FileAccessError: the disk is full, or a letter is not in the encoding of the terminal.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except UnicodeEncodeError as error:
        letter = f"U+{ord(error.object[error.start]):04X}"
        raise FileAccessError(
            f"cannot hold {letter} in its encoding, {error.encoding}",
            source=_NAME,
            hint="set PYTHONIOENCODING=utf-8",
        ) from error
    except OSError as error:
        silence()
        raise FileAccessError(
            f"cannot be written: {(error.strerror or str(error)).lower()}", source=_NAME
        ) from error


def silence() -> None:
    """Point standard output elsewhere, so that Python's exit does not complain of what is left to write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
