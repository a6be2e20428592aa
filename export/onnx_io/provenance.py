"""Where an ONNX file comes from, written into it; and the opset it is written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from convbn.common.text import one_line
from convbn.errors import NotSupportedError

if TYPE_CHECKING:
    import onnx

__all__ = ["add_provenance", "in_opset"]


def add_provenance(model: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Write facts into ``metadata_props``, in place; other entries stay.

    Args:
        model: gets an entry ``convbn.KEY`` for each fact. One that is there already is replaced.
        facts: no time and no path of a machine, so that the same input gives the same file.
    """
    stored = {entry.key: entry for entry in model.metadata_props}
    for key, value in sorted(facts.items()):
        entry = stored.get(f"convbn.{key}") or model.metadata_props.add(key=f"convbn.{key}")
        entry.value = value


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
