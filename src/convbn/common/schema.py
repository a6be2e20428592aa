"""Values from files held against a published JSON schema, and what is wrong with them in a phrase."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from convbn.common.text import clean, did_you_mean

__all__ = ["located", "problem"]


@cache
def _validator(schema: Path) -> Any:
    # Imported here: it takes 60 ms, and only what was read from a file needs it.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))


def problem(value: Any, schema: Path) -> str | None:
    """What a schema has against a value, and where; None if nothing.

    Args:
        value: JSON-ready.
        schema: path of the schema, of draft 2020-12.
    """
    found = located(value, schema)
    return None if found is None else found[0]


def located(value: Any, schema: Path) -> tuple[str, tuple[str | int, ...]] | None:
    """The same, and the keys and numbers from the outside in that lead to it."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator(schema).iter_errors(value))
    if error is None:
        return None
    path = tuple(error.absolute_path)
    where = error.json_path.removeprefix("$").removeprefix(".")
    start = f"{where}." if where else ""
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return clean(f"{start}{missing} is missing"), path
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = next(key for key in error.instance if key not in known)
        meant = did_you_mean(unknown, known)
        told = clean(f"{start}{unknown[:40]} is not known") + (f"; {meant}" if meant else "")
        return told, (*path, unknown)
    told = f"{clean(where or 'the file')}: {clean(error.message)}"
    meant = (
        did_you_mean(str(error.instance), map(str, error.validator_value))
        if error.validator == "enum"
        else None
    )
    return f"{told}; {meant}" if meant else told, path
