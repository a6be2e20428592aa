"""A file system of fsspec behind a password, whose errors repeat it: ``guarded://user:password@host/path``.

What it holds lies in the folder ``$GUARDED_ROOT``. The password comes with the URL or, as for any file system,
from the configuration of fsspec (``$FSSPEC_GUARDED_PASSWORD``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["PASSWORD", "register"]

PASSWORD = "pa55-word"  # noqa: S105


class GuardedFileSystem(LocalFileSystem):
    """Local files, for who knows the password."""

    protocol = ("guarded", "local")

    def __init__(self, username: str = "", password: str = "", **options: Any) -> None:
        super().__init__(**options)
        if password != PASSWORD:
            raise PermissionError(f"{username}:{password} is refused")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        if not path.startswith("guarded://"):
            return path.rstrip("/")
        return f"{os.environ['GUARDED_ROOT']}{urlsplit(path).path}".rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        parts = urlsplit(path)
        given = {"username": parts.username, "password": parts.password and unquote(parts.password)}
        return {name: value for name, value in given.items() if value}


def register(folder: Path) -> dict[str, str]:
    """Let processes know it that are started with the environment that is returned.

    Args:
        folder: empty; it gets the root and what Python reads when it starts.
    """
    (folder / "started").mkdir()
    (folder / "root").mkdir()
    text = "from fsspec import register_implementation\nfrom support.guarded import GuardedFileSystem\n"
    (folder / "started" / "sitecustomize.py").write_text(
        f"{text}register_implementation('guarded', GuardedFileSystem)\n"
    )
    fsspec.register_implementation("guarded", GuardedFileSystem, clobber=True)
    places = [str(folder / "started"), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"GUARDED_ROOT": str(folder / "root"), "PYTHONPATH": os.pathsep.join(filter(None, places))}
