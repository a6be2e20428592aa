"""The errors that a user of convbn can cause, each with the exit code the CLI gives it.

Everything below :class:`ConvBNError` is an answer to the user: one line that names the source, the
cause and the way out. Any other exception that leaves convbn is a bug in convbn.
"""

from __future__ import annotations

__all__ = [
    "BadInputError",
    "CheckFailedError",
    "Concern",
    "ConvBNError",
    "FileAccessError",
    "NotSupportedError",
    "RuntimeMissingError",
    "UsageError",
]


class ConvBNError(Exception):
    """Root of every error that a user can cause.

    Args:
        cause: what went wrong, one sentence without a full stop.
        source: the file, option or model it went wrong with, if there is one.
        hint: the way out, one sentence without a full stop, if there is one.
    """

    exit_code = 3

    def __init__(self, cause: str, *, source: object = None, hint: str | None = None) -> None:
        self.cause = cause
        self.source = None if source is None else str(source)
        self.hint = hint
        super().__init__(cause)

    def __str__(self) -> str:
        line = self.cause if self.source is None else f"{self.source}: {self.cause}"
        return line if self.hint is None else f"{line}; {self.hint}"


class Concern(str):
    """A note of a report that ``--strict`` takes as a failure: something is wrong with what came in."""

    __slots__ = ()


class CheckFailedError(ConvBNError):
    """A comparison or a gate gave the answer no: the outputs differ, or prove nothing."""

    exit_code = 1


class UsageError(ConvBNError):
    """The call itself makes no sense: an unknown option value, a missing argument."""

    exit_code = 2


class BadInputError(ConvBNError):
    """A model, checkpoint or data file is not what it must be."""

    exit_code = 3


class NotSupportedError(ConvBNError):
    """The request is fine, but not here: a missing backend, a feature that is not built yet."""

    exit_code = 4


class RuntimeMissingError(NotSupportedError):
    """A runtime, or the device it needs, is not on this machine."""


class FileAccessError(ConvBNError):
    """A file could not be read or written."""

    exit_code = 5
