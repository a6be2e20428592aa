"""Folders and patterns on the command line: which files they stand for, and where each one's result goes."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convbn.errors import UsageError
from convbn.export.loading.remote import is_url, listed, shown
from convbn.pipeline.planning.files import CHECKPOINTS, ONNX, PROGRAMS, files_of, is_pattern

__all__ = ["Item", "asked_for_many", "found", "paired", "with_targets"]

_VERBS = ("inspect", "fuse", "export")

_ENGINES = (".engine", ".plan", ".trt")


@dataclass(frozen=True, slots=True)
class Item:
    """One file of many.

    Attributes:
        name: relative to the folder that was given, or to what all given files have in common.
        path: of the file.
        target: where its result goes, for verbs that write one.
        other: the file that it is compared with, for ``verify``.
    """

    name: str
    path: str
    target: str | None = None
    other: str | None = None


def asked_for_many(options: argparse.Namespace) -> bool:
    """Whether the arguments stand for more than one model. A file is treated as ever."""
    if options.verb == "verify":
        return stands_for_many(options.reference) or stands_for_many(options.candidate)
    if options.verb == "bench":
        return any(map(stands_for_many, (options.input, *options.others)))
    return options.verb in _VERBS and (bool(options.others) or stands_for_many(options.input))


def stands_for_many(text: str) -> bool:
    """Whether an argument is a folder or a pattern, and no file of that very name."""
    if is_url(text):
        return is_pattern(text) or listed(text) is not None
    return os.path.isdir(text) or is_pattern(text)


def found(given: Sequence[str], options: argparse.Namespace) -> list[Item]:
    """The files that arguments stand for, in the order of their names.

    Args:
        given: files, folders and patterns (``**`` for any folders).
        options: of the verb; they say which kinds of files it can read in a folder, and where it writes.

    Raises:
        UsageError: one of them stands for nothing.
    """
    output = getattr(options, "output", None)
    inside = None if output is None else os.path.realpath(output)
    items: dict[str, Item] = {}
    kinds = _readable(options)
    for text in given:
        files = files_of(text, kinds, skipped=inside)
        if not files and is_pattern(text):
            raise UsageError("no file matches", source=shown(text))
        if not files:
            hint = "a pattern such as 'models/*' takes files of any name"
            cause = f"there is no model in this folder: no {', '.join(kinds)}"
            raise UsageError(cause, source=shown(text), hint=hint)
        for name, path in files.items():
            items.setdefault(path if is_url(path) else os.path.realpath(path), Item(name, path))
    return list(items.values())


def with_targets(items: Sequence[Item], options: argparse.Namespace) -> list[Item]:
    """Give each file its place below the folder OUT, under the name that it has below the folder it is from.

    Raises:
        UsageError: OUT is a file, or two results would have one name.
    """
    output: str = options.output
    if os.path.isfile(output):
        raise UsageError("is a file; the results of many models need a folder", source=output)
    suffix: str | None = options.suffix
    placed: dict[str, Item] = {}
    for item in items:
        stem, own = os.path.splitext(item.name)
        target = os.path.join(output, stem + (suffix or _usual(options.verb, own.lower())))
        if target in placed:
            hint = "fold them in two calls, or into two folders"
            raise UsageError(
                f"{placed[target].path} and {item.path} would be written there", source=target, hint=hint
            )
        placed[target] = Item(item.name, item.path, target)
    return list(placed.values())


def paired(reference: str, candidate: str, options: argparse.Namespace) -> list[Item]:
    """The files of one folder with those of the same names in another; a suffix may differ.

    Raises:
        UsageError: one is a folder and the other is not, or nothing is in the first.
    """
    if not (os.path.isdir(reference) and os.path.isdir(candidate)):
        hint = "give two folders, or two files"
        raise UsageError("many models are compared folder against folder", source=candidate, hint=hint)
    pairs = []
    for item in found([reference], options):
        exact = Path(candidate, item.name)
        same_stem = sorted(exact.parent.glob(f"{glob.escape(exact.stem)}.*")) if exact.parent.is_dir() else []
        models = [path for path in same_stem if path.name.endswith(_readable(options))]
        other = exact if exact.is_file() else models[0] if len(models) == 1 else exact
        pairs.append(Item(item.name, item.path, other=str(other)))
    return pairs


def _readable(options: argparse.Namespace) -> tuple[str, ...]:
    """Suffixes of what a verb reads in a folder: checkpoints where their architecture is given."""
    suffixes: tuple[str, ...] = ONNX
    if getattr(options, "arch", None):
        suffixes += CHECKPOINTS
    if getattr(options, "trust_checkpoint", False):
        suffixes += PROGRAMS
    if hasattr(options, "trust_engine"):
        suffixes += _ENGINES
    return suffixes


def _usual(verb: str, suffix: str) -> str:
    """What a verb writes of a file of this suffix where nothing else is said."""
    if verb == "export":
        return ".engine"
    return suffix if suffix in (*ONNX, *PROGRAMS) else ".safetensors"
