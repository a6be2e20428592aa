"""A copy of a model without its large weights, for the checker and shape inference; almost free to make.

onnx's checker and shape inference serialise what they are given; for a model of a gigabyte that is a
gigabyte. Large floating initializers become inputs of the skeleton, with their type and shape. Small
ones and integers stay: shape inference reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from convbn.common.text import first_line
from convbn.fuse.frontends.onnx.model.dimensions import Dimensions, dimensions, solved
from convbn.fuse.frontends.onnx.model.inference import inferred

if TYPE_CHECKING:
    import onnx

__all__ = ["infer_shapes", "skeleton", "structure_problem"]

_MOST_NUMBERS = 1 << 10
_MOST_INTEGERS = 1 << 16
"""Of a tensor that is kept; from integers shapes may follow."""


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large initializers turned into inputs; ``model`` is left as it is."""
    import onnx

    light = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    inputs = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if _is_kept(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            value = graph.input.add(name=tensor.name)
            value.CopyFrom(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def infer_shapes(
    light: onnx.ModelProto, given: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Dimensions]:
    """Shapes of the main graph's tensors by name; empty where inference cannot run on this skeleton.

    Args:
        light: a skeleton.
        given: shapes of inputs. What the model leaves open stays open: a rank or a size counts only if inference finds
            the same at twice every open dimension, of inputs without a stated shape at twice their first.
    """
    shapes = _inferred(light)
    if given:
        once, twice = (_inferred(_sized(light, given, times)) for times in (1, 2))
        for name, found in once.items():
            other, known = twice.get(name, ()), shapes.get(name, (None,) * len(found))
            if len(found) == len(other) == len(known):
                shapes[name] = tuple(
                    size if isinstance(size, int) and size == again else stated
                    for size, again, stated in zip(found, other, known, strict=True)
                )
    return shapes


def _sized(light: onnx.ModelProto, given: Mapping[str, tuple[int, ...]], times: int) -> onnx.ModelProto:
    """The skeleton for inputs of the given shapes, what the model leaves open so many times as large."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(light)
    for value in copy.graph.input:
        kind = value.type.tensor_type
        sizes = given.get(value.name)
        stated = dimensions(value) if kind.HasField("shape") else None
        if sizes is None or (stated is not None and len(stated) != len(sizes)):
            continue
        opened = (
            [not isinstance(size, int) for size in stated] if stated else [i == 0 for i in range(len(sizes))]
        )
        full = [size * times if free else size for size, free in zip(sizes, opened, strict=True)]
        kind.CopyFrom(onnx.helper.make_tensor_type_proto(kind.elem_type, full).tensor_type)
    for value in (*copy.graph.value_info, *copy.graph.output):
        if not all(isinstance(size, int) for size in dimensions(value)):
            value.type.tensor_type.ClearField("shape")
    return copy


def _inferred(light: onnx.ModelProto) -> dict[str, Dimensions]:
    try:
        graph = inferred(light, data_prop=True).graph
    except Exception:  # inference refuses what it cannot follow, in many ways; a shape stays unknown then
        return {}
    shapes = {
        value.name: dimensions(value)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return solved(graph.node, shapes)


def structure_problem(light: onnx.ModelProto) -> str | None:
    """What onnx's checker has against the structure of a skeleton, in a sentence; None if nothing."""
    import onnx

    try:
        onnx.checker.check_model(light)
    except onnx.checker.ValidationError as error:
        return first_line(error).rstrip(".")
    except UnicodeDecodeError:  # of the checker's own sentence, which quotes a name
        return "a name is not UTF-8"
    return None


def _is_kept(tensor: onnx.TensorProto) -> bool:
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    # Not len(tensor.raw_data): that would copy the bytes out of the message.
    numbers = math.prod(tensor.dims) if tensor.HasField("raw_data") else tensor.ByteSize()
    integers = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return bool(numbers <= (_MOST_INTEGERS if integers else _MOST_NUMBERS))
