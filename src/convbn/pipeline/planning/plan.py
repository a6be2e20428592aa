"""A plan as its author wrote it: TOML, held against ``run-plan.schema.json`` before anything else."""

from __future__ import annotations

import posixpath
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbn.common.schema import located
from convbn.errors import BadInputError
from convbn.export.files.atomic import file_access, open_regular
from convbn.export.loading.remote import fetch, is_url, shown
from convbn.pipeline.planning.lines import line_of

__all__ = ["SCHEMA", "Plan", "PlanError", "read_plan", "words"]

SCHEMA = Path(__file__).parents[1] / "run-plan.schema.json"
_SIZE = 1 << 24
_HINT = "convbn run --init writes one with every key explained"


class PlanError(BadInputError):
    """A plan is no TOML, does not follow the schema, or asks for what cannot be."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan. Its file, and each place that it names, may be a URL.

    Attributes:
        path: of its file, without credentials.
        folder: of its file.
        name: for people and reports.
        given: all of it, by the schema.
        other_store: folder of results in place of the plan's own.
    """

    path: str
    folder: str
    name: str
    given: Mapping[str, Any]
    other_store: str | None = None

    @property
    def output(self) -> str:
        """Folder for what is made."""
        return self.place(self.given["output"])

    @property
    def store(self) -> str:
        """Folder of results."""
        return self.other_store or self.place(self.given.get("store", ".convbn-store"))

    def section(self, name: str) -> Mapping[str, Any]:
        """One of its tables, empty where it is not given."""
        table: Mapping[str, Any] = self.given.get(name, {})
        return table

    def place(self, path: str) -> str:
        """A path or URL of the plan; a path is relative to its folder."""
        if is_url(path):
            return path.rstrip("/")
        if not is_url(self.folder):
            return str(Path(self.folder, Path(path).expanduser()))
        scheme, _, folder = self.folder.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(folder, path))}"


def read_plan(path: str, *, store: str | None = None) -> Plan:
    """Read a plan.

    Args:
        path: of a TOML file, or its URL.
        store: folder of results in place of the plan's own.

    Raises:
        FileAccessError: it cannot be read.
        PlanError: it is not what it must be.
    """
    local, folder = str(fetch(path)) if is_url(path) else path, posixpath.dirname(path)
    path = shown(path)
    with open_regular(local) as file, file_access(path):
        text = file.read(_SIZE + 1)
    try:
        if len(text) > _SIZE:
            raise PlanError("is no plan: it is larger than 16 MiB", source=path, hint=_HINT)
        given = tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        raise PlanError("is no plan: it is not UTF-8", source=path, hint=_HINT) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"is no plan: it is not TOML: {error}", source=path, hint=_HINT) from error
    wrong = located(given, SCHEMA)
    if wrong is not None:
        line = line_of(text.decode(), wrong[1])
        raise PlanError(f"is no plan: line {line}: {wrong[0]}", source=path, hint=_HINT)
    if not is_url(path):
        path = str(Path(path).absolute())
        folder = str(Path(path).parent)
    if store is not None and not is_url(store):
        store = str(Path(store).absolute())
    return Plan(path, folder, given.get("name", Path(path).stem), given, store)


def words(value: str | list[str] | None) -> tuple[str, ...]:
    """A value that may be one word or several."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
