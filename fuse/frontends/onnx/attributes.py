"""Attributes of a type that ONNX does not give them: nothing reads a node that holds one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["odd_attribute"]

_LISTS = (
    "axes",
    "dilations",
    "ends",
    "kernel_shape",
    "output_padding",
    "output_shape",
    "pads",
    "perm",
    "shape",
    "split",
    "starts",
    "strides",
    "value_ints",
)
_INTEGERS = (
    "allowzero",
    "axis",
    "block_size",
    "ceil_mode",
    "count_include_pad",
    "end",
    "exclude_outside",
    "group",
    "is_test",
    "keepdims",
    "num_groups",
    "spatial",
    "start",
    "to",
    "training_mode",
    "transA",
    "transB",
    "value_int",
)
_FLOATS = ("alpha", "beta", "epsilon", "momentum", "value_float")
_TEXTS = ("auto_pad", "coordinate_transformation_mode", "mode")

_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_INTEGERS, int),
    **dict.fromkeys(_FLOATS, (float, int)),
    **dict.fromkeys(_TEXTS, str),
}


def odd_attribute(node: gs.Node) -> str | None:
    """The name of the first attribute of ``node`` that is not of its type; None where all are."""
    import onnx_graphsurgeon as gs

    for name, value in node.attrs.items():
        if name in _LISTS or name == "value_floats":
            kinds = int if name in _LISTS else (float, int)
            if not isinstance(value, list | tuple) or not all(isinstance(n, kinds) for n in value):
                return str(name)
        elif name == "value":  # of a Pad until opset 11 the number, else a tensor
            if not isinstance(value, (float, int) if node.op == "Pad" else gs.Constant):
                return str(name)
        elif not isinstance(value, _KINDS.get(name, object)):
            return str(name)
    return None
