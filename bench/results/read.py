"""Results read back from their JSON files, held against the published schema first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from convbn.errors import BadInputError, FileAccessError

__all__ = ["ResultFormatError", "read_result"]

VERSION = "2"
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


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
    if version is not None and version != VERSION:
        raise ResultFormatError(
            f"a result of schema version {str(version)[:20]}, and this convbn reads version {VERSION}",
            source=path,
            hint="measure again with convbn bench --json",
        )
    for problem in _problems(value, _schema(), ""):
        raise ResultFormatError(
            f"not a result of convbn bench: {problem}", source=path, hint="write one with convbn bench --json"
        )
    return dict(value)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


@cache
def _schema() -> dict[str, Any]:
    text = Path(__file__).parents[1].joinpath("bench-result.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _problems(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    """What is wrong with a value, for the keywords of JSON Schema that the published schema uses."""
    if "$ref" in schema:
        yield from _problems(value, _schema()["$defs"][schema["$ref"].rpartition("/")[2]], where)
    place = where or "the file"
    if "const" in schema and value != schema["const"]:
        yield f"{place} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is none of the values it may have"
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{place} is not of type {schema['type']}"
        return
    if "anyOf" in schema and all(any(_problems(value, one, where)) for one in schema["anyOf"]):
        yield from _problems(value, schema["anyOf"][0], where)
    if isinstance(value, dict):
        yield from _object_problems(value, schema, where)
    elif isinstance(value, list):
        low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not low <= len(value) <= high:
            yield f"{place} has {len(value)} entries"
        for index, item in enumerate(value):
            yield from _problems(item, schema.get("items", {}), f"{where}[{index}]")
    elif isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value) or len(value) < schema.get("minLength", 0):
            yield f"{place} is not of the form it must have"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, above, below = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "exclusiveMaximum"))
        if (
            (low is not None and value < low)
            or (above is not None and value <= above)
            or (below is not None and value >= below)
        ):
            yield f"{place} is out of range"


def _object_problems(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{f'{where}.{key}' if where else key} is missing"
    more = schema.get("additionalProperties", True)
    for key, item in value.items():
        place = f"{where}.{key[:40]}" if where else key[:40]
        if key in schema.get("properties", {}):
            yield from _problems(item, schema["properties"][key], place)
        elif isinstance(more, dict):
            yield from _problems(item, more, place)
        elif more is False:
            yield f"{place} is not known"
    if "if" in schema:
        branch = "else" if any(_problems(value, schema["if"], where)) else "then"
        yield from _problems(value, schema.get(branch, {}), where)


def _is(value: Any, types: str | list[str]) -> bool:
    names = [types] if isinstance(types, str) else types
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names)
