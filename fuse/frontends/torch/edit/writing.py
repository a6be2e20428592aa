"""Operators of the view as ATen calls, and what else a program holds of a node that becomes another one."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.schema import arguments, schema_of
from convbn.fuse.operators.calls import Mapped
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.view.op import Op

if TYPE_CHECKING:
    import torch.fx
    from torch.export.exported_program import ModuleCallEntry
    from torch.export.graph_signature import ExportGraphSignature

__all__ = ["call_of", "copied", "fresh", "put_argument", "rename"]


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


def put_argument(node: torch.fx.Node, mapped: Mapped, slot: int, tensor: torch.fx.Node) -> None:
    """Make a call read another tensor at an operator's slot, by another overload where this one takes none.

    Args:
        node: the call, edited in place.
        mapped: what it is in the view.
        slot: of the operator.
        tensor: what it is to read there.
    """
    import torch

    name = mapped.names[slot]
    if name is None:  # mm and matmul of two matrices have no bias; addmm is the same with one
        node.target, node.args, node.kwargs = torch.ops.aten.addmm.default, (tensor, *node.args), {}
        return
    schema = schema_of(node)
    if "Tensor" not in str(next(a.type for a in schema.arguments if a.name == name)):
        # A number becomes a tensor, and the overload for numbers the one for tensors.
        given = arguments(node)
        node.target = node.target.overloadpacket.Tensor  # type: ignore[union-attr]
        node.args, node.kwargs = (given["self"], given["other"]), {}
    position = list(arguments(node)).index(name)
    if name in node.kwargs or position >= len(node.args):
        node.update_kwarg(name, tensor)
    else:
        node.update_arg(position, tensor)


def copied(call: ModuleCallEntry) -> ModuleCallEntry:
    """A copy whose names can be changed; the tree specs beside them are constant."""
    signature = call.signature
    if signature is None:
        return call
    inputs, outputs = copy.deepcopy(signature.inputs), copy.deepcopy(signature.outputs)
    return replace(call, signature=replace(signature, inputs=inputs, outputs=outputs))


def fresh(name: str, taken: Collection[str]) -> str:
    """A name that is not taken: this one, if it is free, or with the first free number."""
    number, free = 1, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def rename(signature: ExportGraphSignature, calls: Iterable[Any], old: str, new: str) -> None:
    """Let the signatures of a program and of its module calls name the value that took another one's place."""
    named: list[Any] = [spec.arg for spec in signature.output_specs]
    for call in calls:
        if call.signature is not None:
            named.extend((*call.signature.inputs, *call.signature.outputs))
    for argument in named:
        if getattr(argument, "name", None) == old:
            argument.name = new
