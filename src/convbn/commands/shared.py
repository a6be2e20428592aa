"""What several verbs do alike: options into values, reports into files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.console import Console
from convbn.errors import UsageError
from convbn.sources import Source, SourceOptions

if TYPE_CHECKING:
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report

__all__ = [
    "console_of",
    "from_source",
    "fuse_options",
    "output_kind",
    "source_options",
    "write_json",
    "write_text",
]


def source_options(options: argparse.Namespace) -> SourceOptions:
    """How the command line says to open IN."""
    return SourceOptions(options.arch, tuple(options.arch_arg), tuple(options.input_shape), options.seed)


def fuse_options(options: argparse.Namespace, *, verify: bool) -> FuseOptions:
    """How the command line says to fold."""
    from convbn.fuse.options import FuseOptions

    return FuseOptions(only=tuple(options.only), skip=tuple(options.skip), verify=verify, seed=options.seed)


def console_of(options: argparse.Namespace) -> Console:
    """The console; it leaves stdout to JSON or Markdown where one of them asks for it."""
    taken = options.json == "-" or getattr(options, "markdown", None) == "-"
    return Console(json_on_stdout=taken, quiet=options.quiet)


def from_source(report: Report, source: Source) -> Report:
    """The report, with the file it came from."""
    return replace(report, path=source.path, sha256=source.sha256, notes=(*source.notes, *report.notes))


def output_kind(path: str, kinds: tuple[str, ...]) -> str:
    """The kind of OUT, by its suffix: it does not exist yet, so there is no content to go by."""
    suffix = Path(path).suffix.lower()
    if suffix not in kinds:
        raise UsageError(
            f"cannot write a '{suffix}' file", source=path, hint=f"OUT may be {', '.join(kinds)}"
        )
    return suffix


def write_json(path: str | None, value: Mapping[str, Any], *, overwrite: bool = True) -> None:
    """Write JSON to ``path``, to stdout for ``-``, nowhere for None."""
    if path is not None:
        write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", overwrite=overwrite)


def write_text(path: str, text: str, *, overwrite: bool = True) -> None:
    """Write text to ``path``, to stdout for ``-``."""
    if path == "-":
        sys.stdout.write(text)
        return
    from convbn.export.files import write_atomically

    data = text.encode("utf-8", "backslashreplace")

    def write(file: Any) -> None:
        file.write(data)

    write_atomically(path, write, overwrite=overwrite)
