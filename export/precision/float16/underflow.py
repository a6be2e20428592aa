"""Values that float16 turns to 0 before something that is infinite there: ``log(x + 1e-10)``, ``x / (‖x‖ + 1e-12)``.

Alone the loss is nothing. Behind a logarithm or in a divisor it is an infinity, so such a value stays in float32
from the node that makes it through every node that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from convbn.fuse.frontends.onnx.model.graphs import LAYERS

if TYPE_CHECKING:
    import onnx

__all__ = ["SMALLEST", "made_from", "read_singularly", "underflowing"]

#: Half of float16's smallest number, 2⁻²⁴: what is no larger becomes 0.
SMALLEST = 2.0**-25
_FLOORS = frozenset({"Add", "Sub", "Max", "Clip", "Where"})
#: Of a value that is small where theirs is: these hand on the loss.
_PASSING = frozenset(
    {
        *("Sqrt", "Pow", "Identity", "Abs", "Neg", "Clip", "Max", "Expand", "Reshape", "Flatten", "Squeeze"),
        *("Unsqueeze", "Transpose", "Slice", "Gather", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum"),
    }
)


def underflowing(model: onnx.ModelProto) -> dict[str, str]:
    """The values that are kept from 0 by a constant which float16 turns to 0, each with a sentence.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`.
    """
    floors = dict(_floors(model))
    read = read_singularly(model)
    found: dict[str, str] = {}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def reaches(name: str, sentence: str) -> bool:
        onwards = [n for n in readers.get(name, ()) if n.op_type in _PASSING and n.input[0] == name]
        follow = [reaches(node.output[0], sentence) for node in onwards]
        if name in read or any(follow):
            found[name] = sentence
            return True
        return False

    for name, sentence in floors.items():
        reaches(name, sentence)
    return found


def read_singularly(model: onnx.ModelProto) -> set[str]:
    """Values that a node reads which is infinite at 0, or has an infinite slope there."""
    from onnx import numpy_helper

    stored = {t.name: t for t in model.graph.initializer}
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type in ("Log", "Reciprocal"):
            found.add(node.input[0])
        elif node.op_type == "Div":
            found.add(node.input[1])
        elif node.op_type == "Pow":
            power = stored.get(node.input[1])
            if power is None or float(numpy_helper.to_array(power).min(initial=0)) < 0:
                found.add(node.input[0])
    return found - stored.keys()


def made_from(model: onnx.ModelProto, vanishing: Mapping[str, str]) -> dict[str, str]:
    """The values on the way from the last linear layers to values that vanish, each with the sentence of the latter.

    Near 0 a logarithm or a quotient turns the rounding of what it is given into a difference of any size.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, str] = {}
    for start, sentence in vanishing.items():
        waiting = [start]
        while waiting:
            name = waiting.pop()
            if name in found or name not in producers:
                continue
            found[name] = sentence
            if producers[name].op_type not in LAYERS:
                waiting += producers[name].input
    return found


def _floors(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Outputs of sums and maxima with a constant that is positive, and 0 in float16."""
    from onnx import numpy_helper

    tiny = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == 1:
            array = np.abs(numpy_helper.to_array(tensor))
            if array.size and 0 < array.max() <= SMALLEST:
                tiny[tensor.name] = float(array.max())
    for node in model.graph.node:
        if node.op_type in _FLOORS:
            values = [tiny[name] for name in node.input if name in tiny] + _limits(node)
            if values:
                told = f"tensor {node.output[0]!r} is kept from 0 by {values[0]:.1e} in {node.op_type} {node.name!r}"
                yield (
                    node.output[0],
                    f"{told}, which float16 turns to 0, and is divided by or taken the logarithm of",
                )


def _limits(node: onnx.NodeProto) -> list[float]:
    """The lower limit of a Clip before opset 11."""
    attributes: list[Any] = list(node.attribute)
    return [a.f for a in attributes if node.op_type == "Clip" and a.name == "min" and 0 < a.f <= SMALLEST]
