"""The files that a path, a folder or a pattern stands for."""

from __future__ import annotations

import glob
import os
from pathlib import Path

__all__ = ["CHECKPOINTS", "ONNX", "PROGRAMS", "files_of", "is_pattern"]

#: Files of a folder that are models by their names. A pattern takes whatever it matches.
ONNX = (".onnx",)
PROGRAMS = (".pt2",)
CHECKPOINTS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")


def is_pattern(text: str) -> bool:
    """Whether this is a pattern with ``*``, ``?`` or ``[``, and no file of that very name."""
    return glob.has_magic(text) and not os.path.lexists(text)


def files_of(text: str, suffixes: tuple[str, ...], *, skipped: str | None = None) -> tuple[str, list[str]]:
    """What a path stands for.

    Args:
        text: a file; a folder, whose files are taken at any depth, hidden ones not; or a pattern, in which ``**``
            stands for any folders.
        suffixes: of the files that are taken of a folder, in small letters.
        skipped: the real path of a folder that is not looked into, as results go there.

    Returns:
        The folder that is fixed in it, below which files have names, and the files, sorted.
    """
    if is_pattern(text):
        parts = Path(text).parts
        fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        base = str(Path(*parts[:fixed])) if fixed else os.curdir
        return base, sorted(path for path in glob.glob(text, recursive=True) if not os.path.isdir(path))
    if not os.path.isdir(text):
        return os.path.dirname(text) or os.curdir, [text]
    files = []
    for root, folders, names in os.walk(text):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) != skipped
        ]
        files += [
            os.path.join(root, name)
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return text, sorted(files)
