"""Dimensions of an ONNX graph, open ones by their names (``dim_param``): dimensions of one name are equal.

onnx's inference keeps names and gives new ones to what it cannot follow, such as the last of ``x.view(x.size(0), -1)``.
A Reshape has as many elements behind it as in front, so with equal names cancelled a new name on one side is what is
left on the other: of ``[N, 3, 8, 8] → [N, k]``, k is 192.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["Dimensions", "dimensions", "solved"]

Dimension = int | str | None
Dimensions = tuple[Dimension, ...]


_LARGEST = 1 << 26
"""Of a size that is believed: a map along an axis that a broken file makes larger would fill the memory."""


def dimensions(info: onnx.ValueInfoProto) -> Dimensions:
    """The sizes of a tensor that states a shape; a name where one is open, None where it has none."""
    found: list[Dimension] = []
    for dim in info.type.tensor_type.shape.dim:
        size = dim.dim_value
        stated = 0 < size <= _LARGEST or (size == 0 and dim.HasField("dim_value"))
        found.append(size if stated else dim.dim_param or None)
    return tuple(found)


def solved(nodes: Iterable[onnx.NodeProto], shapes: Mapping[str, Dimensions]) -> dict[str, Dimensions]:
    """The shapes with every dimension that follows from a Reshape put in its name's place.

    Args:
        nodes: of the graph, in running order.
        shapes: of its tensors, by name.
    """
    found: dict[str, int | str] = {}
    own: set[str] = set()

    def now(name: str) -> list[int | str]:
        sizes: list[int | str] = []
        for axis, size in enumerate(shapes[name]):
            if size is None:  # a dimension without a name is one of its own
                size = f"{name}[{axis}]"
                own.add(size)
            sizes.append(_follow(found, size))
        return sizes

    for node in nodes:
        if node.op_type != "Reshape" or node.input[0] not in shapes or node.output[0] not in shapes:
            continue
        answer = _left_over(now(node.input[0]), now(node.output[0]))
        if answer is not None:
            found[answer[0]] = answer[1]
    if not found:
        return dict(shapes)
    return {name: tuple(None if size in own else size for size in now(name)) for name in shapes}


def _follow(found: Mapping[str, int | str], size: int | str) -> int | str:
    while isinstance(size, str) and size in found:
        size = found[size]
    return size


def _left_over(data: list[int | str], output: list[int | str]) -> tuple[str, int | str] | None:
    """A name of the output, and what it must be for both shapes to have the same number of elements."""
    before = Counter(size for size in data if isinstance(size, str))
    behind = Counter(size for size in output if isinstance(size, str))
    more = math.prod(size for size in data if isinstance(size, int))
    less = math.prod(size for size in output if isinstance(size, int))
    left, (unknown, *further) = [*(before - behind).elements()], [*(behind - before).elements(), None]
    if unknown is None or further != [None] or not less or not more or more % less:
        return None
    if not left:
        return unknown, more // less
    return (unknown, left[0]) if len(left) == 1 and more == less else None
