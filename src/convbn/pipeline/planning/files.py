"""The files that a path, a folder or a pattern stands for."""

from __future__ import annotations

import glob
import os
import posixpath
from pathlib import Path

from convbn.export.loading import remote

__all__ = ["CHECKPOINTS", "ONNX", "PROGRAMS", "files_of", "is_pattern"]

#: Files of a folder that are models by their names. A pattern takes whatever it matches.
ONNX = (".onnx",)
PROGRAMS = (".pt2",)
CHECKPOINTS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")


def is_pattern(text: str) -> bool:
    """Whether this is a pattern with ``*``, ``?`` or ``[``, and no file of that very name."""
    if remote.is_url(text):
        return remote.is_pattern(text)
    return glob.has_magic(text) and not os.path.lexists(text)


def files_of(text: str, suffixes: tuple[str, ...], *, skipped: str | None = None) -> dict[str, str]:
    """What a path or URL stands for.

    Args:
        text: a file; a folder, whose files are taken at any depth, hidden ones not; or a pattern, in which ``**``
            stands for any folders.
        suffixes: of the files that are taken of a folder, in small letters.
        skipped: the real path of a folder that is not looked into, as results go there.

    Returns:
        Each file by its name below the folder that is fixed in the text, sorted.
    """
    if remote.is_url(text):
        there = remote.listed(text)
        if there is None:
            return {posixpath.basename(remote.shown(text)): text}
        return {
            name: url for name, url in there.items() if remote.is_pattern(text) or _is_model(name, suffixes)
        }
    if is_pattern(text):
        parts = Path(text).parts
        fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        base = str(Path(*parts[:fixed])) if fixed else os.curdir
        files = [path for path in glob.glob(text, recursive=True) if not os.path.isdir(path)]
    elif os.path.isdir(text):
        base, files = text, []
        for root, folders, names in os.walk(text):
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) != skipped
            ]
            files += [os.path.join(root, name) for name in names]
        files = [path for path in files if _is_model(os.path.relpath(path, base), suffixes)]
    else:
        base, files = os.path.dirname(text) or os.curdir, [text]
    return {os.path.relpath(path, base): path for path in sorted(files)}


def _is_model(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file of a folder is taken, by its name in it: no part of it is hidden."""
    return name.lower().endswith(suffixes) and not any(part.startswith(".") for part in Path(name).parts)
