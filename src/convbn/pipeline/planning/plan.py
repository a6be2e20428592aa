"""A plan as its author wrote it: TOML, held against ``run-plan.schema.json`` before anything else."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbn.common.schema import problem
from convbn.errors import BadInputError
from convbn.export.files.atomic import file_access, open_regular

__all__ = ["SCHEMA", "Plan", "PlanError", "read_plan", "words"]

SCHEMA = Path(__file__).parents[1] / "run-plan.schema.json"
_SIZE = 1 << 24
_HINT = "convbn run --init writes one with every key explained"


class PlanError(BadInputError):
    """A plan is no TOML, does not follow the schema, or asks for what cannot be."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan.

    Attributes:
        path: of its file.
        name: for people and reports.
        output: folder for what is made.
        store: folder of results.
        given: all of it, by the schema.
    """

    path: Path
    name: str
    output: Path
    store: Path
    given: Mapping[str, Any]

    def section(self, name: str) -> Mapping[str, Any]:
        """One of its tables, empty where it is not given."""
        table: Mapping[str, Any] = self.given.get(name, {})
        return table

    def place(self, path: str) -> Path:
        """A path of the plan, which is relative to its folder."""
        return self.path.parent / Path(path).expanduser()


def read_plan(path: str, *, store: str | None = None) -> Plan:
    """Read a plan.

    Args:
        path: of a TOML file.
        store: folder of results in place of the plan's own.

    Raises:
        FileAccessError: it cannot be read.
        PlanError: it is not what it must be.
    """
    with open_regular(path) as file, file_access(path):
        text = file.read(_SIZE + 1)
    try:
        if len(text) > _SIZE:
            raise PlanError("is no plan: it is larger than 16 MiB", source=path, hint=_HINT)
        given = tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        raise PlanError("is no plan: it is not UTF-8", source=path, hint=_HINT) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"is no plan: it is not TOML: {error}", source=path, hint=_HINT) from error
    wrong = problem(given, SCHEMA)
    if wrong is not None:
        raise PlanError(f"is no plan: {wrong}", source=path, hint=_HINT)
    file_path = Path(path).absolute()
    plan = Plan(file_path, given.get("name", file_path.stem), file_path.parent, file_path.parent, given)
    where = plan.place(given.get("store", ".convbn-store")) if store is None else Path(store).absolute()
    return Plan(file_path, plan.name, plan.place(given["output"]), where, given)


def words(value: str | list[str] | None) -> tuple[str, ...]:
    """A value that may be one word or several."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
