"""Where an ONNX file comes from, written into it and read back; and the opset it is written in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbn.common.text import one_line
from convbn.errors import BadInputError, NotSupportedError

if TYPE_CHECKING:
    import onnx

__all__ = ["add_provenance", "in_opset", "precision_record"]

#: Of a record what is read back: entries, and those of each item of its lists, by their types.
_ENTRIES: Mapping[str, type] = {"precision": str, "method": str}
_LISTS: Mapping[str, Mapping[str, Any]] = {
    "kept": {"node": str},
    "sensitivity": {"node": str, "operator": str, "error": (int, float, type(None))},
}


def add_provenance(model: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Write facts into ``metadata_props``, in place; other entries stay.

    Args:
        model: gets an entry ``convbn.KEY`` for each fact. One that is there already is replaced.
        facts: no time and no path of a machine, so that the same input gives the same file.
    """
    stored = {entry.key: entry for entry in model.metadata_props}
    for key, value in sorted(facts.items()):
        entry = stored.get(_key(key)) or model.metadata_props.add(key=_key(key))
        entry.value = value


def precision_record(model: onnx.ModelProto, source: str | None = None) -> dict[str, Any] | None:
    """How a model came to its precision, as :func:`add_provenance` was told; None where it does not say.

    Args:
        model: of which only the metadata is looked at.
        source: its file, for errors.

    Raises:
        BadInputError: what it says is no such record.
    """
    key = _key("precision")
    found = next((entry.value for entry in model.metadata_props if entry.key == key), None)
    if found is None:
        return None
    try:
        record = json.loads(found, parse_constant=lambda name: None)
        known = all(isinstance(record[key], kind) for key, kind in _ENTRIES.items()) and all(
            isinstance(item[key], kind)
            for name, entries in _LISTS.items()
            for item in record.get(name, ())
            for key, kind in entries.items()
        )
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        known = False
    if not known:
        cause, hint = "is no record of a conversion", "remove that entry, or export the model again"
        raise BadInputError(f"its metadata {key} {cause}", source=source, hint=hint)
    return dict(record)


def _key(fact: str) -> str:
    return f"convbn.{fact}"


def in_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in another version of the default operator set, by onnx's own converter.

    Args:
        model: unchanged.
        opset: the version.

    Returns:
        A model whose outputs are to be compared with the original's: the converter is not exact for
        every operator.

    Raises:
        NotSupportedError: the converter does not know the way.
    """
    import onnx
    from onnx import version_converter

    if any(entry.domain in ("", "ai.onnx") and entry.version == opset for entry in model.opset_import):
        return model
    latest = onnx.defs.onnx_opset_version()
    if not 1 <= opset <= latest:
        raise NotSupportedError(f"onnx {onnx.__version__} knows no opset {opset}", hint=f"1 to {latest}")
    try:
        converted: onnx.ModelProto = version_converter.convert_version(model, opset)
    except Exception as error:  # its C++ throws what it likes
        cause = f"onnx cannot bring this model into opset {opset}: {one_line(error, 200)}"
        raise NotSupportedError(cause) from error
    kept = {entry.key: entry.value for entry in model.metadata_props}
    del converted.metadata_props[:]
    for key, value in kept.items():
        converted.metadata_props.add(key=key, value=value)
    return converted
