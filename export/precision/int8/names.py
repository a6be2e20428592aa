"""Names that onnxruntime's quantisation gives without looking whether they are taken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from convbn.export.precision.graphs import names_of, rename_in_bodies
from convbn.fuse.frontends.onnx.model.graphs import bodies_of

if TYPE_CHECKING:
    import onnx

__all__ = ["free_names", "give_back"]

#: What it puts behind the name of a tensor; a number makes the copy of a bias that two nodes share.
_ENDINGS = re.compile(r"_quantized|_scale|_zero_point|_QuantizeLinear|_DequantizeLinear|\d+$")


def free_names(model: onnx.ModelProto) -> dict[str, str]:
    """Rename, in place, the tensors whose names quantisation would give to others.

    Returns:
        The new name of each.
    """
    names, graph = names_of(model), model.graph
    tensors = dict.fromkeys(value.name for value in (*graph.input, *graph.initializer))
    tensors.update(dict.fromkeys(name for node in graph.node for name in node.output if name))
    renamed = {
        name: names.fresh(f"renamed/{name}")
        for name in tensors
        if any(name[: found.start()] in tensors for found in _ENDINGS.finditer(name))
    }
    _rename(model, renamed)
    return renamed


def give_back(model: onnx.ModelProto, renamed: Mapping[str, str]) -> None:
    """Undo :func:`free_names` once the model is quantised; what has taken a name gets a fresh one."""
    names = names_of(model)
    used = {value.name for value in model.graph.initializer} | {
        n for node in model.graph.node for n in node.output
    }
    _rename(model, {name: names.fresh(name) for name in renamed if name in used})
    _rename(model, {new: name for name, new in renamed.items()})


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)
        if any(bodies_of(node)):
            rename_in_bodies(node, dict(names))
