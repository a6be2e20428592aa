"""The JSON file beside a file that cannot say itself what it is: an engine, or another package."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

from convbn.export.files.atomic import Content, check_target, write_atomically

__all__ = ["check_with_sidecar", "sidecar_path", "tool_versions", "write_with_sidecar"]


def sidecar_path(file: str | os.PathLike[str]) -> Path:
    """``model.engine`` has its sidecar in ``model.engine.json``."""
    path = Path(file)
    return path.with_name(path.name + ".json")


def write_with_sidecar(
    content: Content, sidecar: Mapping[str, object], path: str | os.PathLike[str], *, overwrite: bool
) -> None:
    """Write a file and its sidecar.

    The file's bytes are on the disk, under a temporary name, before the sidecar appears; the file gets its name
    last. A full disk therefore leaves neither. A kill between the two leaves a sidecar whose SHA-256 fits no file,
    or not the old one that is still there, which :func:`convbn.export.engines.sidecar.read_sidecar` tells; the
    other order could leave a new file under the claims of an old sidecar, or under none. Where the file cannot get
    its name, or a Ctrl-C comes there, the sidecar is what it was before.

    Args:
        content: of the file, or what writes it.
        sidecar: what its schema asks for.
        path: of the file.
        overwrite: whether existing files may be replaced.

    Raises:
        FileAccessError: one of the two cannot be written.
    """
    text = json.dumps(sidecar, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def write(file: BinaryIO) -> None:
        if callable(content):
            content(file)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        replace = overwrite or _orphaned(Path(path), beside)
        write_atomically(beside, text.encode("utf-8", "surrogatepass"), overwrite=replace)

    beside = sidecar_path(path)
    before = beside.read_bytes() if beside.is_file() else None
    try:
        write_atomically(path, write, overwrite=overwrite)
    except BaseException:
        if before is not None:
            write_atomically(beside, before, overwrite=True)
        else:
            beside.unlink(missing_ok=True)
        raise


def check_with_sidecar(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse early what :func:`write_with_sidecar` would refuse late.

    A sidecar whose file is missing, which a kill can leave, is in nobody's way.

    Raises:
        FileAccessError: see :func:`convbn.export.files.atomic.check_target`.
    """
    target = check_target(path, overwrite=overwrite)
    check_target(sidecar_path(path), overwrite=overwrite or _orphaned(target, sidecar_path(path)))


def _orphaned(file: Path, sidecar: Path) -> bool:
    if file.exists():
        return False
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict) or "schema_version" not in content:
        return False
    return any(
        isinstance(content.get(what), dict) and "sha256" in content[what] for what in ("engine", "package")
    )


def tool_versions(*more: str) -> dict[str, str | None]:
    """Versions of what took part, None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("convbn", "onnx", *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
