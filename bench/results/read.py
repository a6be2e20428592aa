"""Results read back from their JSON files, held against the published schema first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convbn.bench.results.result import SCHEMA_VERSION
from convbn.common.schema import problem
from convbn.errors import BadInputError, FileAccessError

__all__ = ["ResultFormatError", "read_result"]


_SCHEMA = Path(__file__).parents[1] / "bench-result.schema.json"


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
    wrong = problem(value, _SCHEMA)
    if wrong is not None:
        raise ResultFormatError(
            f"not a result of convbn bench: {wrong}", source=path, hint="write one with convbn bench --json"
        )
    return dict(value)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
