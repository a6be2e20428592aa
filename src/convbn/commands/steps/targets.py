"""Every file that a command writes, held against those that it reads and writes, before any work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from convbn.errors import FileAccessError, UsageError
from convbn.export.formats import format_of

__all__ = ["check_targets"]

_READ = (
    "input",
    "new",
    "reference",
    "candidate",
    "result",
    "before",
    "after",
    "baseline",
    "inputs",
    "calibration",
)
_TEXT = ("json", "markdown")
_REPORTS = (*_TEXT, "html", "junit", "github_benchmark", "bencher", "step_summary")


def check_targets(options: argparse.Namespace) -> None:
    """Refuse now what could not be written later, or would take the place of something else.

    Args:
        options: of any verb.

    Raises:
        UsageError: one path has two uses, or two reports want stdout, or one that cannot go there does.
        FileAccessError: a target exists and is not to be replaced, or cannot be written.
    """
    given = {name: path for name in _REPORTS if (path := getattr(options, name, None))}
    streams = [name for name, path in given.items() if path == "-"]
    if not all(name in _TEXT for name in streams):
        shown = next(name for name in streams if name not in _TEXT)
        raise UsageError("only --json and --markdown can go to stdout", source=f"{_option(shown)} -")
    if len(streams) > 1:
        raise UsageError("--json - and --markdown - both want stdout")
    reports = {name: path for name, path in given.items() if path != "-"}
    used = [*_read(options), *_artefacts(options)]
    for name, path in reports.items():
        for what, other in used:
            if _same(path, other):
                hint = "give every file a path of its own"
                raise UsageError(f"{_option(name)} would replace {what}", source=path, hint=hint)
        used.append((_option(name), path))
    _check_folder_of_results(options)
    output = getattr(options, "output", None)
    if output is not None:
        _check(output, overwrite=options.force)
    for name, path in reports.items():
        _check_report(name, path, options)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What is read, with a name for it."""
    paths = [path for name in _READ if (path := getattr(options, name, None)) is not None]
    for path in (*paths, *getattr(options, "others", ())):
        yield f"{path}, which is read", path


def _artefacts(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What is written besides reports: OUT, and the file that goes with it."""
    output = getattr(options, "output", None)
    if output is not None:
        yield "OUT", output
        with suppress(UsageError):  # which the verb says
            for suffix, what in format_of(output).beside.items():
                yield what, f"{output}{suffix}"


def _same(one: str, other: str) -> bool:
    """Whether two paths are one file, by whatever name."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False  # one of them is not there yet, or is the name of a hub


def _check_folder_of_results(options: argparse.Namespace) -> None:
    """``history`` reads the JSON files of a folder; its page is none of them."""
    folder, output = getattr(options, "folder", None), getattr(options, "output", None)
    if folder is None or output is None or Path(output).suffix != ".json":
        return
    if os.path.exists(output) and _same(os.path.dirname(os.path.realpath(output)), folder):
        raise UsageError("the page would replace a result that is read", source=output)


def _check(path: str, *, overwrite: bool) -> None:
    from convbn.export.files.atomic import check_target

    check_target(path, overwrite=overwrite)


def _check_report(name: str, path: str, options: argparse.Namespace) -> None:
    if name == "step_summary":  # is appended to, and may be a pipe
        if not os.path.exists(path) or os.path.isdir(path):
            _check(path, overwrite=True)
        return
    # The verbs that write no other report replace their own, and nothing that is no JSON.
    lenient = not hasattr(options, "markdown")
    _check(path, overwrite=lenient or options.force)
    if lenient and not getattr(options, "force", False) and os.path.isfile(path) and not _is_json(path):
        hint = "name another file"
        raise FileAccessError("exists, and is no report that --json could replace", source=path, hint=hint)


def _is_json(path: str) -> bool:
    """Whether a file is empty or begins as a JSON object does."""
    from convbn.export.files.atomic import open_regular

    with open_regular(path) as file:
        start = file.read(64).lstrip()
    return start[:1] in (b"", b"{")
