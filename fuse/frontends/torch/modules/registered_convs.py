"""Convolutions that are none of torch.nn's: deformable, sparse, custom operators; told by whoever has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbn.errors import UsageError
from convbn.fuse.operators import registry
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.registered_conv import RegisteredConv

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["ConvLayout", "conv_layout_of", "register_conv", "with_registered"]


@dataclass(frozen=True, slots=True)
class ConvLayout:
    """Where a convolution keeps what; the arguments of :func:`register_conv`."""

    weight: str
    bias: str | None
    output_axis: int
    channel_axis: int

    def op(self, label: str) -> RegisteredConv:
        """The operator of the view."""
        return RegisteredConv(label, self.output_axis, self.channel_axis)


_CLASSES: dict[type, ConvLayout] = {}
_OPERATORS: dict[str, Operator] = {}


def register_conv(
    kind: Any,
    *,
    weight: str = "weight",
    bias: str | None = "bias",
    output_axis: int = 0,
    channel_axis: int = 1,
) -> None:
    """Let a BatchNorm go into a convolution of one's own: ``y[o] = Σ W[o]·(whatever the data gives) + b[o]``.

    Args:
        kind: a class of modules, whose forward reads the weight in one call and gives back what that call gives; or an
            operator of ``torch.library``: itself, its overload, what ``custom_op`` gave, or ``"namespace::name"``.
            An exported program shows operators and no classes.
        weight: the attribute that holds W, or the operator's argument for it.
        bias: the attribute or argument for b, ``[O]``, which may be None; None where there is none.
        output_axis: W's axis of outputs.
        channel_axis: the result's axis of outputs.

    Raises:
        UsageError: ``kind`` is none of these, or has no argument of that name.
    """
    import torch

    layout = ConvLayout(weight, bias, output_axis, channel_axis)
    if inspect.isclass(kind) and issubclass(kind, torch.nn.Module):
        _CLASSES[kind] = layout
        return
    overload = _overload(kind)
    arguments = tuple(argument.name for argument in overload._schema.arguments)
    for name in (weight, bias):
        if name is not None and name not in arguments:
            raise UsageError(
                f"{overload} has no argument '{name}'", hint=f"its arguments are {', '.join(arguments)}"
            )
    key = str(overload._schema.name)
    name = key.removeprefix("aten::")

    def read(call: AtenCall) -> Mapped | None:
        tensors = [one for one in call.given if one not in (weight, bias) and call.tensor(one) is not None]
        return call.reads(layout.op(name), *(tensors[:1] or (None,)), weight, bias, *tensors[1:])

    if key in _OPERATORS:
        registry.unregister(_OPERATORS[key])
    row = Aten((name,), read, arguments, overloads=(str(overload._overloadname),))
    _OPERATORS[key] = Operator(RegisteredConv, aten=(row,))
    registry.register(_OPERATORS[key])


def _overload(kind: Any) -> Any:
    """The overload of an operator of torch.library."""
    import torch

    found = getattr(kind, "_opoverload", kind)
    if isinstance(kind, str) and kind.count("::") == 1:
        namespace, name = kind.split("::")
        found = getattr(getattr(torch.ops, namespace), name, None)
    if isinstance(found, torch._ops.OpOverloadPacket):
        found = getattr(found, found.overloads()[0])  # type: ignore[no-untyped-call]
    if not isinstance(found, torch._ops.OpOverload):
        raise UsageError(
            f"{kind!r} is neither a class of modules nor an operator of torch.library",
            hint="give the class, the operator, or its name as 'namespace::name'",
        )
    return found


def conv_layout_of(part: torch.nn.Module) -> ConvLayout | None:
    """How a module's class was registered, if its forward is the class's own."""
    for parent in type(part).__mro__:
        if parent in _CLASSES:
            own = "forward" not in vars(part) and type(part).forward is parent.forward  # type: ignore[attr-defined]
            return _CLASSES[parent] if own else None
    return None


def with_registered(
    mapper: Callable[[torch.fx.Node], Mapped | None],
    parts: Mapping[str, torch.nn.Module],
    names: Mapping[torch.fx.Node, str],
    where: Callable[[torch.fx.Node], str],
) -> Callable[[torch.fx.Node], Mapped | None]:
    """A mapper that knows the calls in the forwards of registered classes, too.

    Args:
        mapper: for all other calls.
        parts: the modules by path.
        names: the nodes that stand for a tensor of a module, and its name.
        where: the path of the module that a node is called in.
    """
    layouts = {path: layout for path, part in parts.items() if (layout := conv_layout_of(part)) is not None}
    if not layouts:
        return mapper

    def mapped(node: torch.fx.Node) -> Mapped | None:
        path = where(node)
        if node.op != "call_function" or path not in layouts:
            return mapper(node)
        layout = layouts[path]
        read = {names.get(one): one for one in node.all_input_nodes}
        weight = read.get(f"{path}.{layout.weight}")
        bias = read.get(f"{path}.{layout.bias}")
        data = [one for one in node.all_input_nodes if one not in (weight, bias)]
        if weight is None or not data:
            return mapper(node)
        slots = (data[0], weight, bias, *data[1:])
        return Mapped(layout.op(type(parts[path]).__name__), slots, (None,) * len(slots))

    return mapped
