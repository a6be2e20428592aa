"""Operators of the view as ATen calls, for nodes that become another operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.view.op import Op

if TYPE_CHECKING:
    import torch.fx

__all__ = ["call_of"]


def call_of(op: Op, operands: list[torch.fx.Node | None], *, like: Any) -> tuple[Any, tuple[Any, ...]]:
    """Target and arguments of a call that computes ``op``.

    Args:
        op: the operator.
        operands: by slot.
        like: the target that stands there now; a program that has ``convolution`` keeps to it.

    Raises:
        TypeError: nothing asks for this operator to be written.
    """
    import torch

    aten = torch.ops.aten
    if isinstance(op, Elementwise):
        targets = {
            Arithmetic.ADD: aten.add.Tensor,
            Arithmetic.SUBTRACT: aten.sub.Tensor,
            Arithmetic.MULTIPLY: aten.mul.Tensor,
            Arithmetic.DIVIDE: aten.div.Tensor,
        }
        return targets[op.operation], tuple(operands)
    if isinstance(op, Conv) and op.window is not None and op.window.begin == op.window.end:
        laid = op.window
        strides, padding, dilations = list(laid.strides), list(laid.begin), list(laid.dilations)
        data = (*operands, None, None)[:3]
        if like is aten.convolution.default:
            return like, (*data, strides, padding, dilations, False, [0] * len(strides), op.groups)
        target = (aten.conv1d, aten.conv2d, aten.conv3d)[len(strides) - 1].default
        return target, (*data, strides, padding, dilations, op.groups)
    raise TypeError(f"{op} is not written by any edit")
