"""One call of an operator as its reader sees it: ONNX's and PyTorch's in plain values, no framework needed.

A reader answers with the class whose formula holds for the call exactly, and with None wherever it does not hold or
cannot be shown to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Value
from convbn.fuse.view.op import Op, Window

__all__ = [
    "Aten",
    "AtenCall",
    "Mapped",
    "OnnxCall",
    "OnnxReader",
    "Shape",
    "Tensors",
    "axis_of",
    "per_axis",
    "window",
]

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class OnnxCall:
    """One node of an ONNX graph.

    Attributes:
        operator: its type.
        opset: the version of ONNX's own operators.
        attributes: integers, floats, strings and lists of them, of the types that ONNX gives them.
        inputs, outputs: by slot; None where an optional one is absent.
    """

    operator: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: Sequence[Value | None]
    outputs: Sequence[Value | None]

    def input(self, slot: int) -> Value | None:
        """The value at a slot, None where there is none."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def axis(self, value: Value | None, default: int | None) -> int | None:
        """The attribute ``axis``, of ``value``, counted from the front; None where that is not known."""
        axis = self.attributes.get("axis", default)
        return None if axis is None or value is None else axis_of(int(axis), value.rank)

    def integers(self, slot: int, attribute: str) -> list[int] | None:
        """A small integer input, or the attribute that older opsets had in its place."""
        if attribute in self.attributes:
            return [int(n) for n in self.attributes[attribute]]
        value = self.input(slot)
        if value is None or value.constant is None or math.prod(value.constant.shape) > 16:
            return None
        numbers = value.constant.array()
        return [int(n) for n in numbers.reshape(-1)] if numbers.dtype.kind in "iu" else None

    @property
    def padded_by_runtime(self) -> bool:
        """Whether the padding is left to the runtime."""
        return self.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", "")

    def window(self, spatial: int, *, unpadded: bool = False) -> Window | None:
        """Where a kernel is laid; None where padding is left to the runtime or the numbers are not that many.

        Args:
            spatial: the number of spatial axes.
            unpadded: whether a runtime that is left to pad has nothing to pad.
        """
        given = self.attributes
        if self.padded_by_runtime and not unpadded:
            return None
        none = [0] * 2 * spatial
        by_rule = self.padded_by_runtime or given.get("auto_pad") == "VALID"
        pads = none if by_rule else list(given.get("pads", none))
        strides = tuple(int(n) for n in given.get("strides", [1] * spatial))
        dilations = tuple(int(n) for n in given.get("dilations", [1] * spatial))
        if len(pads) != 2 * spatial or len(strides) != spatial or len(dilations) != spatial:
            return None
        return Window(strides, dilations, tuple(map(int, pads[:spatial])), tuple(map(int, pads[spatial:])))


OnnxReader = Callable[[OnnxCall], Op | Refusal | None]


class Tensors(Protocol):
    """What a graph of PyTorch knows of the tensors in its calls, which readers handle without looking into them."""

    def is_tensor(self, value: object) -> bool:
        """Whether an argument is one."""
        ...

    def shape(self, value: Any) -> Shape | None:
        """Its shape, None for a dimension that may change and altogether where the rank is not known."""
        ...

    def call(self, value: Any) -> AtenCall | None:
        """The call that gives it, None where none does or it is not known."""
        ...

    def origin(self, value: Any) -> Any:
        """The tensor that it is another name of; itself where it is none."""
        ...

    def is_stored(self, value: Any) -> bool:
        """Whether it is a parameter or an input of the graph."""
        ...

    def dtype(self, value: Any) -> str | None:
        """The name of its type, such as ``float32``; None where it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class AtenCall:
    """One call of an ATen operator.

    Attributes:
        name: without its namespace, and without the underscore of its in-place form.
        given: the arguments by ATen's names.
        tensors: knows the tensors among them.
    """

    name: str
    given: Mapping[str, Any]
    tensors: Tensors

    def tensor(self, name: str = "self") -> Any:
        """The tensor at an argument, None where anything else stands there."""
        value = self.given.get(name)
        return value if self.tensors.is_tensor(value) else None

    def shape(self, name: str = "self") -> Shape | None:
        """The shape of the tensor at an argument."""
        value = self.tensor(name)
        return None if value is None else self.tensors.shape(value)

    def rank(self, name: str = "self") -> int | None:
        """The rank of the tensor at an argument."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    @property
    def spatial(self) -> int:
        """The number of spatial axes that the operator's name states: 2 of ``max_pool2d``."""
        return next(int(letter) for letter in self.name if letter.isdigit())

    def axis(self, argument: str, rank: int | None, default: int | None = None) -> int | None:
        """An axis counted from the front; None where that is not known."""
        axis = self.given.get(argument, default)
        return axis_of(axis, rank) if type(axis) is int else None

    def reads(self, op: Op, *names: str | None) -> Mapped:
        """``op`` over the tensors at these arguments, by slot."""
        return Mapped(op, tuple(self.tensor(name) if name else None for name in names), names)

    def unary(self, op: Op, name: str = "self") -> Mapped | None:
        """``op`` over the tensor at one argument."""
        return None if self.tensor(name) is None else self.reads(op, name)


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a call computes.

    Attributes:
        op: the operator; the channel axis of a convolution is settled once the rank is known.
        slots: by slot, the tensor, the name of the parameter or the number that stands there.
        names: by slot, the argument of the ATen operator; None where it has none for it.
        through: the transposition between the weight and the call, if there is one.
    """

    op: Op
    slots: tuple[Any, ...]
    names: tuple[str | None, ...] = ()
    through: Any = None


@dataclass(frozen=True, slots=True)
class Aten:
    """What is to be known of an ATen operator, or of several that are alike.

    Attributes:
        names: without namespace, and without the underscore of in-place forms.
        read: what a call computes; None where no class stands for it.
        signature: the arguments in the order in which Python's functions and methods take them, by ATen's names; a
            last one with a star may also be given one by one. Empty where code that is traced without inputs is not
            looked into for it.
        functions: further names in ``torch``, ``torch.nn.functional``, ``operator`` and of methods, for the first name.
        modules: classes of ``torch.nn`` that do nothing else, beside those that are called like the first name.
        shape: of the result, or of each of several equal ones, as far as it follows without running anything.
        keeps_rank: whether the result has the rank of the data, or of every tensor of a list.
        several: whether the result is a list, and ``shape`` that of each of its tensors.
        fresh: whether the result lies in memory of its own, unless the call is told to work in place.
        overloads: those that compute what the name says, beside the usual ones.
    """

    names: tuple[str, ...]
    read: Callable[[AtenCall], Mapped | None] | None
    signature: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    shape: Callable[[AtenCall], Shape | None] | None = None
    keeps_rank: bool = False
    several: bool = False
    fresh: bool = True
    overloads: tuple[str, ...] = ()


def axis_of(axis: int, rank: int | None) -> int | None:
    """An axis counted from the front; None where it is counted from the back and the rank is not known."""
    return axis if axis >= 0 else None if rank is None else axis + rank


def per_axis(given: Any, spatial: int) -> tuple[int, ...] | None:
    """One number an axis, where one may stand for all."""
    numbers = tuple(given) if isinstance(given, list | tuple) else (given,)
    if len(numbers) == 1:
        numbers *= spatial
    return numbers if len(numbers) == spatial and all(type(n) is int for n in numbers) else None


def window(strides: Any, padding: Any, dilations: Any, kernel: Sequence[int | None]) -> Window | None:
    """Where PyTorch lays a kernel; None where that is not the same before and behind the data, or not known."""
    spatial = len(kernel)
    stride, dilation = per_axis(strides, spatial), per_axis(dilations, spatial)
    if stride is None or dilation is None or any(size is None for size in kernel):
        return None
    if padding == "valid":
        padding = 0
    if padding == "same":
        overhang = [step * ((size or 1) - 1) for step, size in zip(dilation, kernel, strict=True)]
        if any(total % 2 for total in overhang):
            return None
        padding = [total // 2 for total in overhang]
    begin = per_axis(padding, spatial)
    return None if begin is None else Window(stride, dilation, begin, begin)
