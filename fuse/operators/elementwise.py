"""Sums, differences, products and quotients, of two values or of a value and a constant.

With a map ``(s, t)`` behind it:

* ``s·(a ± b) + t = (s·a + t) ± s·b``: both take the scale, one of them the shift;
* ``s·(a ± c) + t``: the constant becomes ``s·c ± t`` and the value takes the scale;
* ``s·(a·c) + t = c·(s·a + t/c)``; without a shift the constant takes it all.

With a map in front of it, ``a = s·a' + t``:

* ``a ± b``: a shift goes into b with the opposite sign, or on; a scale is given to the sum,
  ``s·(a' ± b/s) + t``, and b takes its inverse. That is what moves a BatchNorm off a residual stream;
* ``a ± c`` and ``a·c``: on to the readers, with the constant adjusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.broadcast import along
from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.operators.rule import Moves, Rule, size_along
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import Op

__all__ = ["OPERATOR", "Arithmetic", "Elementwise"]


class Arithmetic(StrEnum):
    """The four operations of :class:`Elementwise`."""

    ADD = "Add"
    SUBTRACT = "Sub"
    MULTIPLY = "Mul"
    DIVIDE = "Div"


@dataclass(frozen=True, slots=True)
class Elementwise(Op):
    """``a ∘ b`` with NumPy's broadcasting. Slots: a, b."""

    operation: Arithmetic

    def describe(self) -> str:
        """The operation's name."""
        return str(self.operation)


_SUMS = (Arithmetic.ADD, Arithmetic.SUBTRACT)


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """Into the operands, by the table of this module."""
    operation = cast(Elementwise, node.op).operation
    constants = [moves.constant(node, slot) for slot in (0, 1)]
    known = [slot for slot in (0, 1) if isinstance(constants[slot], Constant)]
    if len(known) == 2 or output.rank is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the rank of what {node.label} gives is not known")
    if known:
        constant = cast(Constant, constants[known[0]])
        return _into_constant(moves, node, known[0], constant, affine, axis)
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None or left is right or not _carry(node, affine, axis):
        return Refusal(
            Reason.AXIS_NOT_PROVEN, f"the operands of {node.label} do not both have the map's channels"
        )
    if operation in _SUMS:
        sign = 1.0 if operation is Arithmetic.ADD else -1.0
        plain = Affine.scale_by(affine.scale)
        ways = [
            lambda: _both(moves, node, left, affine, right, plain, axis),
            lambda: _both(moves, node, left, plain, right, Affine(affine.scale, sign * affine.shift), axis),
        ]
        # First into the operand that nobody else reads: the other one may be a stream as long as the model.
        return moves.first(*(ways if len(left.readers) <= len(right.readers) else ways[::-1]))
    if not affine.is_scale:
        return Refusal(
            Reason.PRODUCER_NOT_LINEAR, f"{node.label} multiplies two values and cannot take a shift"
        )
    if operation is Arithmetic.DIVIDE:
        return moves.produce(left, affine, axis, reader=node)
    return moves.first(
        lambda: moves.produce(left, affine, axis, reader=node),
        lambda: moves.produce(right, affine, axis, reader=node),
    )


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """Out of the operand at ``slot``, by the table of this module."""
    operation = cast(Elementwise, node.op).operation
    output, own, other = node.outputs[0], node.input(slot), node.input(1 - slot)
    if output.rank is None or own is None or other is None or own is other or own.rank != output.rank:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the operands of {node.label} are not of one known rank")
    constant = moves.constant(node, 1 - slot)
    if isinstance(constant, Constant):
        return _past_constant(moves, node, slot, constant, affine, axis)
    if not _carry(node, affine, axis):
        return Refusal(
            Reason.AXIS_NOT_PROVEN, f"the operands of {node.label} do not both have the map's channels"
        )
    if operation not in _SUMS:
        if not affine.is_scale or (operation is Arithmetic.DIVIDE and slot == 1):
            return Refusal(
                Reason.PRODUCER_NOT_LINEAR, f"{node.label} combines two values and cannot pass a shift on"
            )
        return moves.consume(output, affine, axis)
    # One of the two operands is the first one, which counts as it is: their signs differ where the second is taken off.
    sign = 1.0 if operation is Arithmetic.ADD else -1.0
    into_other = sign * affine.shift
    onward = Affine(affine.scale, affine.shift if slot == 0 else into_other)
    if affine.is_shift:
        return moves.first(
            lambda: moves.produce(other, Affine.shift_by(into_other), axis, reader=node),
            lambda: moves.consume(output, onward, axis),
        )
    inverse = Affine.scale_by(affine.scale).inverse()
    if inverse is None:
        return Refusal(Reason.ILL_CONDITIONED, f"a scale of 0 cannot be taken out of {node.label}")
    refusal = moves.produce(other, inverse, axis, reader=node)
    return refusal if refusal is not None else moves.consume(output, onward, axis)


def _both(
    moves: Moves, node: Node, left: Value, to_left: Affine, right: Value, to_right: Affine, axis: int
) -> Refusal | None:
    return moves.produce_all([(left, to_left), (right, to_right)], axis, reader=node)


def _into_constant(
    moves: Moves, node: Node, slot: int, constant: Constant, affine: Affine, axis: int
) -> Refusal | None:
    """``s·(a ∘ c) + t`` with a constant at ``slot``."""
    operation = cast(Elementwise, node.op).operation
    output, value = node.outputs[0], node.input(1 - slot)
    rank = output.rank
    if rank is None or value is None or value.rank != rank or len(constant.shape) > rank:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"the operands of {node.label} are not of one known rank")
    if not _keeps_size(value, affine, axis):
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} broadcasts its data along the map's axis")
    numbers = constant.exact()
    scale, shift = along(affine.scale, axis, rank), along(affine.shift, axis, rank)
    if operation in _SUMS:
        # c − a: the value carries the minus sign, and its scale passes all the same.
        sign = -1.0 if operation is Arithmetic.SUBTRACT and slot == 1 else 1.0
        if not affine.is_identity:
            changed = round_vector(
                _trimmed(scale * numbers + sign * shift, constant), constant.dtype, "constant"
            )
            if (refusal := moves.set(node, slot, changed)) is not None:
                return refusal
        return moves.produce(value, Affine.scale_by(affine.scale), axis, reader=node)
    if operation is Arithmetic.DIVIDE and slot == 0:
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} divides a constant by its data")
    if affine.is_scale:
        if operation is Arithmetic.DIVIDE and not affine.scale.all():
            return Refusal(Reason.ILL_CONDITIONED, f"the constant of {node.label} cannot take a scale of 0")
        factor = scale * numbers if operation is Arithmetic.MULTIPLY else numbers / scale
        factor = _trimmed(factor, constant)
        return moves.set(node, slot, round_sum(factor, constant.dtype, axis - rank + factor.ndim, "constant"))
    vector = _vector(numbers, axis, rank, affine.channels)
    if vector is None or not vector.all():
        return _no_shift(node, vector)
    carried = affine.shift / vector if operation is Arithmetic.MULTIPLY else affine.shift * vector
    return moves.produce(value, Affine(affine.scale, carried), axis, reader=node)


def _past_constant(
    moves: Moves, node: Node, slot: int, constant: Constant, affine: Affine, axis: int
) -> Refusal | None:
    """``(s·a + t) ∘ c`` with the data at ``slot``: what the readers must apply to ``a ∘ c'``."""
    operation = cast(Elementwise, node.op).operation
    output, value = node.outputs[0], node.input(slot)
    rank = output.rank
    if rank is None or value is None or not _keeps_size(output, affine, axis):
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} broadcasts its data along the map's axis")
    numbers = constant.exact()
    if operation in _SUMS:
        # ±a ± c: fold the shift into the constant, and let the scale go on with the constant divided by it.
        sign = 1.0 if operation is Arithmetic.ADD else -1.0
        total = numbers + sign * along(affine.shift, axis, rank)
        if affine.is_shift:
            return moves.set(
                node, 1 - slot, round_vector(_trimmed(total, constant), constant.dtype, "constant")
            )
        if (affine.scale == 0).any():
            return Refusal(Reason.ILL_CONDITIONED, f"a scale of 0 cannot be taken out of {node.label}")
        divided = _trimmed(total / along(affine.scale, axis, rank), constant)
        refusal = moves.set(node, 1 - slot, round_vector(divided, constant.dtype, "constant"))
        return refusal if refusal is not None else moves.consume(output, Affine.scale_by(affine.scale), axis)
    if operation is Arithmetic.DIVIDE and slot == 1:
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} divides by its data")
    if affine.is_scale:
        return moves.consume(output, affine, axis)
    vector = _vector(numbers, axis, rank, affine.channels)
    if vector is None or (operation is Arithmetic.DIVIDE and not vector.all()):
        return _no_shift(node, vector)
    onward = affine.shift * vector if operation is Arithmetic.MULTIPLY else affine.shift / vector
    return moves.consume(output, Affine(affine.scale, onward), axis)


def _vector(numbers: NDArray[np.float64], axis: int, rank: int, channels: int) -> NDArray[np.float64] | None:
    """A constant as one number a channel of ``axis``, if it is that."""
    full = numbers.reshape([1] * (rank - numbers.ndim) + list(numbers.shape))
    if any(size != 1 for i, size in enumerate(full.shape) if i != axis):
        return None
    return np.broadcast_to(full.reshape(-1), (channels,))


def _no_shift(node: Node, vector: NDArray[np.float64] | None) -> Refusal:
    why = "differs within a channel" if vector is None else "is 0 in some channel"
    return Refusal(Reason.PRODUCER_NOT_LINEAR, f"the constant of {node.label} {why}, so no shift passes it")


def _trimmed(numbers: NDArray[np.float64], constant: Constant) -> NDArray[np.float64]:
    """Without leading axes of size 1 that the constant did not have."""
    while numbers.ndim > len(constant.shape) and numbers.shape[0] == 1:
        numbers = numbers[0]
    return numbers


def _carry(node: Node, affine: Affine, axis: int) -> bool:
    """Whether both operands have the map's channels along its axis; other axes may be broadcast."""
    rank = node.outputs[0].rank
    return all(
        value is not None and value.rank == rank and _keeps_size(value, affine, axis)
        for value in node.inputs[:2]
    )


def _keeps_size(value: Value, affine: Affine, axis: int) -> bool:
    return size_along(value, axis) == affine.channels


_OPERATIONS: dict[Arithmetic, Callable[..., NDArray[np.float64]]] = {
    Arithmetic.ADD: np.add,
    Arithmetic.SUBTRACT: np.subtract,
    Arithmetic.MULTIPLY: np.multiply,
    Arithmetic.DIVIDE: np.divide,
}


def evaluated(op: Elementwise, known: Sequence[Constant | None]) -> Evaluated | None:
    """Over constants alone."""
    left, right = [*known, None][:2]
    if left is None or right is None or left.dtype != right.dtype:
        return None
    try:
        shape = np.broadcast_shapes(left.shape, right.shape)
    except ValueError:
        return None

    def exact() -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            return _OPERATIONS[op.operation](left.exact(), right.exact())

    return shape, exact


def from_onnx(call: OnnxCall) -> Op | None:
    """Add, Sub, Mul, Div, which broadcast as NumPy does from opset 7 on."""
    return Elementwise(Arithmetic(call.operator)) if call.opset >= 7 and len(call.inputs) == 2 else None


_ATEN = {
    "add": Arithmetic.ADD,
    "sub": Arithmetic.SUBTRACT,
    "rsub": Arithmetic.SUBTRACT,
    "mul": Arithmetic.MULTIPLY,
    "div": Arithmetic.DIVIDE,
}


def from_aten(call: AtenCall) -> Mapped | None:
    """Of two tensors, or of a tensor and a number."""
    given = call.given
    if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
        return None
    names = ("other", "self") if call.name == "rsub" else ("self", "other")
    slots = tuple(given.get(name) for name in names)
    tensors = [slot for slot in slots if call.tensors.is_tensor(slot)]
    numbers = [slot for slot in slots if type(slot) in (int, float)]
    if not tensors or len(tensors) + len(numbers) != 2:
        return None
    return Mapped(Elementwise(_ATEN[call.name]), slots, names)


def broadcast_shape(call: AtenCall) -> Shape | None:
    """By NumPy's rules; a size is known where it does not hang on one that is not."""
    operands = [call.given.get("self"), call.given.get("other")]
    shapes = [() if isinstance(o, int | float) else call.tensors.shape(o) for o in operands]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(len(shape) for shape in known)
    full = [(1,) * (rank - len(shape)) + shape for shape in known]
    sizes: list[int | None] = []
    for axis in range(rank):
        present = [shape[axis] for shape in full]
        larger = {size for size in present if size is not None and size > 1}
        # An unknown size may be 1, and then the other operand's is the result's, whatever it is.
        sizes.append(larger.pop() if larger else None if None in present else 1)
    return tuple(sizes)


def _aten(name: str, *functions: str) -> Aten:
    return Aten((name,), from_aten, ("self", "other"), functions, shape=broadcast_shape)


RULE = Rule("elementwise", Elementwise, backward, forward, through=True)

OPERATOR = Operator(
    Elementwise,
    RULE,
    evaluated,
    dict.fromkeys(map(str, Arithmetic), from_onnx),
    (
        _aten("add", "iadd"),
        _aten("sub", "isub"),
        _aten("rsub"),
        _aten("mul", "imul"),
        _aten("div", "truediv", "itruediv"),
    ),
)
