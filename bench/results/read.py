"""Results read back from their JSON files, held against the published schema first."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from convbn.bench.results.result import SCHEMA_VERSION
from convbn.common.text import clean
from convbn.errors import BadInputError, FileAccessError

__all__ = ["ResultFormatError", "read_result"]


class ResultFormatError(BadInputError):
    """A file is not a result of ``convbn bench``, or one of another schema version."""


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result.

    Args:
        path: of a file that ``convbn bench --json`` wrote.

    Returns:
        The result, by the published schema.

    Raises:
        FileAccessError: the file cannot be read.
        ResultFormatError: it is not JSON, not a result, or of another schema version.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ResultFormatError("not a result of convbn bench: it is not UTF-8", source=path) from error
    except OSError as error:
        hint = "write one with convbn bench --json"
        raise FileAccessError(f"cannot be read: {error.strerror}", source=path, hint=hint) from error
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ResultFormatError(
            "not a result of convbn bench: it is not JSON",
            source=path,
            hint="write one with convbn bench --json",
        ) from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version is not None and version != SCHEMA_VERSION:
        raise ResultFormatError(
            f"a result of schema version {str(version)[:20]}, and this convbn reads version {SCHEMA_VERSION}",
            source=path,
            hint="measure again with convbn bench --json",
        )
    problem = _problem(value)
    if problem is not None:
        raise ResultFormatError(
            f"not a result of convbn bench: {problem}", source=path, hint="write one with convbn bench --json"
        )
    return dict(value)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


@cache
def _validator() -> Any:
    # Imported here: it takes 60 ms, and only stored results need it.
    from jsonschema import Draft202012Validator

    text = Path(__file__).parents[1].joinpath("bench-result.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def _problem(value: Any) -> str | None:
    """What the published schema has against a value, and where; None if nothing."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(value))
    if error is None:
        return None
    where = error.json_path.removeprefix("$").removeprefix(".")
    start = f"{where}." if where else ""
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return clean(f"{start}{missing} is missing")
    if error.validator == "additionalProperties":
        unknown = next(key for key in error.instance if key not in error.schema["properties"])
        return clean(f"{start}{unknown[:40]} is not known")
    return f"{clean(where or 'the file')}: {clean(error.message)}"
