"""Every file that a command names, before any work: what is read is there, and nothing written takes its place."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from convbn.errors import FileAccessError, UsageError
from convbn.export.checkpoints.hub import HUB
from convbn.export.files.atomic import check_target, open_regular
from convbn.export.formats import FORMATS, format_of
from convbn.export.loading.remote import is_url
from convbn.export.onnx_io.locations import external_locations

__all__ = ["check_targets", "replaces"]

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
    "plan",
)
_MAY_BE_FOLDERS = ("inputs", "calibration")
#: The verbs that write models, and what says so of a format.
_MODELS_WRITTEN = {"fuse": {"fuse"}, "export": {"export"}, "refit": {"engine", "external_data"}}
_TEXT = ("json", "markdown")
_REPORTS = (*_TEXT, "html", "junit", "github_benchmark", "bencher", "step_summary")


def check_targets(options: argparse.Namespace) -> None:
    """Refuse now what could not be read or written later, or would take the place of something else.

    Args:
        options: of any verb.

    Raises:
        UsageError: one path has two uses, or two reports want stdout, or one that cannot go there does.
        FileAccessError: a file is missing, a target exists and is not to be replaced, or cannot be written.
    """
    given = {name: path for name in _REPORTS if (path := getattr(options, name, None))}
    streams = [name for name, path in given.items() if path == "-"]
    if not all(name in _TEXT for name in streams):
        shown = next(name for name in streams if name not in _TEXT)
        raise UsageError("only --json and --markdown can go to stdout", source=f"{_option(shown)} -")
    if len(streams) > 1:
        raise UsageError("--json - and --markdown - both want stdout")
    reports = {name: path for name, path in given.items() if path != "-"}
    _check_format(options)
    if (onnx := getattr(options, "onnx", None)) is not None:
        reports = {"onnx": onnx, **reports}
    # Nothing replaces a file that is not there, so that no model need be searched for the names of its weights.
    weights = any(os.path.exists(path) for path in reports.values())
    used = [*_read(options, weights=weights), *_artefacts(options)]
    for name, path in reports.items():
        replaces(_option(name), path, used)
        used.append((_option(name), path))
    _check_folder_of_results(options)
    for name in _READ:
        if name == "plan" and getattr(options, "init", False):
            continue  # which is written
        _check_read(getattr(options, name, None), folder=name in _MAY_BE_FOLDERS)
    for path in getattr(options, "others", ()):
        _check_read(path)
    output = getattr(options, "output", None)
    if output is not None:
        _check(output, overwrite=options.force)
    for name, path in reports.items():
        _check_report(name, path, options)


def replaces(name: str, path: str, used: Iterable[tuple[str, str]]) -> None:
    """Refuse a report that would take the place of another file.

    Args:
        name: of the report.
        path: where it is to go.
        used: the other files, each behind what it is.

    Raises:
        UsageError: it is one of them.
    """
    for what, other in used:
        if _same(path, other):
            hint = "give every file a path of its own"
            raise UsageError(f"{name} would replace {what}", source=path, hint=hint)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read(options: argparse.Namespace, *, weights: bool) -> Iterator[tuple[str, str]]:
    """What is read, with a name for it; the files that models keep their weights in if ``weights`` is set."""
    paths = [path for name in _READ if (path := getattr(options, name, None)) is not None]
    for path in (*paths, *getattr(options, "others", ())):
        yield f"{path}, which is read", path
        if weights and path.lower().endswith(".onnx") and os.path.isfile(path):
            folder = os.path.dirname(path)
            yield from (
                (f"weights of {path}", os.path.join(folder, name)) for name in external_locations(path)
            )


def _artefacts(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What is written besides reports: OUT, and the file that goes with it."""
    yield from ((f"the result {path}", path) for path in getattr(options, "targets", ()))
    output = getattr(options, "output", None)
    if output is not None:
        yield "OUT", output
        if options.verb in _MODELS_WRITTEN:
            for suffix, what in format_of(output).beside.items():
                yield what, f"{output}{suffix}"


def _check_format(options: argparse.Namespace) -> None:
    """What a verb writes is told by the suffix of OUT; what fits the model, the verb says once it knows the model."""
    if options.verb in _MODELS_WRITTEN:
        groups = _MODELS_WRITTEN[options.verb]
        format_of(options.output, [row for row in FORMATS if groups & (row.verbs | row.takes)])


def _check_read(path: str | None, *, folder: bool = False) -> None:
    """Refuse a file that is not there; names of a hub are no files, and a URL of a plan is read by the plan."""
    if path is None or path.startswith(HUB) or is_url(path) or (folder and os.path.isdir(path)):
        return
    open_regular(path).close()


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
    check_target(path, overwrite=overwrite)


def _check_report(name: str, path: str, options: argparse.Namespace) -> None:
    if name == "step_summary":  # is appended to, and may be a pipe
        if not os.path.exists(path) or os.path.isdir(path):
            _check(path, overwrite=True)
        return
    if name == "onnx":
        _check(path, overwrite=options.force)
        return
    # The verbs that write no other report replace their own, and nothing that is no JSON.
    lenient = not hasattr(options, "markdown")
    _check(path, overwrite=lenient or options.force)
    if lenient and not getattr(options, "force", False) and os.path.isfile(path) and not _is_json(path):
        hint = "name another file"
        raise FileAccessError("exists, and is no report that --json could replace", source=path, hint=hint)


def _is_json(path: str) -> bool:
    """Whether a file is empty or begins as a JSON object does."""
    with open_regular(path) as file:
        start = file.read(64).lstrip()
    return start[:1] in (b"", b"{")
