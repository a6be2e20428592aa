"""A product with a constant that is written as one of axes by letters: ``W @ x``, and Einsum with one constant.

``y[out] = Σ W[w]·x[d]`` over the letters that ``out`` lacks, plus a bias that may be absent. A map along an axis of y
whose letter W has goes into W, ``W' = s·W``; along one that x alone has its scale goes on to x. Its shift becomes an
addition behind the product, ``b' = s·b + t``, which has no place for a bias: the model gains an operator for it.

In front, along a letter that W has: ``W' = s·W``, and ``Σ W·t`` is added. Along one that W has not the scale goes on,
and a bias takes its inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.broadcast import along
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import (
    Moves,
    Pending,
    Rule,
    axis_not_proven,
    parameters,
    size_along,
    wrong_channels,
)
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, Labelled, Op

__all__ = ["OPERATOR", "Contraction"]


@dataclass(frozen=True, slots=True)
class Contraction(Labelled):
    """Slots: the two factors, then a bias that broadcasts to the output. ``weight_slot`` is the constant one's.

    Attributes:
        weight_slot: 0 or 1.
        weight, data, output: a letter for each axis, none twice.
    """

    weight_slot: int
    weight: str
    data: str
    output: str

    @property
    def data_slot(self) -> int:
        """The other one."""
        return 1 - self.weight_slot


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The scale into W or on to x, the shift into the bias."""
    op = cast(Contraction, node.op)
    if axis >= len(op.output):
        return axis_not_proven(node)
    letter = op.output[axis]
    if moves.constant(node, BIAS) is not None or not affine.is_scale:
        constants = parameters(moves, node, op.weight_slot)
        if isinstance(constants, Refusal):
            return constants
        (weight, bias), rank = constants, len(op.output)
        total = along(affine.shift, axis, rank)
        if bias is not None:
            total = along(affine.scale, axis, rank) * bias.exact() + total
        if (refusal := moves.set(node, BIAS, round_vector(_trimmed(total), weight.dtype))) is not None:
            return refusal
    if letter in op.weight:
        return _scale(moves, node, affine, letter)
    data = cast(Value, node.input(op.data_slot))  # no frontend gives a product without data
    return moves.produce(data, Affine.scale_by(affine.scale), op.data.index(letter), reader=node)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The scale into W or on to y, ``Σ W·t`` into the bias."""
    op = cast(Contraction, node.op)
    if slot != op.data_slot or axis >= len(op.data):
        return axis_not_proven(node)
    letter = op.data[axis]
    onward = letter not in op.weight
    if onward and letter not in op.output:
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} adds up the BatchNorm's channels")
    if not affine.is_scale and (onward or set(op.data) - set(op.weight) - set(op.output)):
        return Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} passes a scale on, and no shift")
    if onward:
        return _onward(moves, node, affine, op.output.index(letter))
    if not affine.is_scale and (refusal := _shift(moves, node, affine, letter)) is not None:
        return refusal
    return _scale(moves, node, affine, letter)


def _onward(moves: Moves, node: Node, affine: Affine, axis: int) -> Refusal | None:
    """``W·(s·x) + b = s·(W·x + b/s)``."""
    bias = moves.constant(node, BIAS)
    if isinstance(bias, Refusal):
        return bias
    if bias is not None:
        inverse = affine.inverse()
        if inverse is None:
            return Refusal(Reason.ILL_CONDITIONED, f"a scale of 0 cannot be taken out of {node.label}")
        rank = len(cast(Contraction, node.op).output)
        divided = _trimmed(along(inverse.scale, axis, rank) * bias.exact())
        if (refusal := moves.set(node, BIAS, round_vector(divided, bias.dtype))) is not None:
            return refusal
    return moves.consume(node.outputs[0], affine, axis)


def _shift(moves: Moves, node: Node, affine: Affine, letter: str) -> Refusal | None:
    """Add ``Σ W·t``, which varies along those axes of y that W has."""
    op = cast(Contraction, node.op)
    constants = parameters(moves, node, op.weight_slot)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    if (refusal := _other_size(node, weight, letter, affine)) is not None:
        return refusal
    kept = "".join(found for found in op.output if found in op.weight)
    sizes = dict(zip(op.weight, weight.shape, strict=True))
    shape = tuple(sizes.get(found, 1) for found in op.output)

    def added() -> NDArray[np.float64]:
        result: NDArray[np.float64] = np.einsum(f"{op.weight},{letter}->{kept}", weight.exact(), affine.shift)
        return result.reshape(shape) + (0.0 if bias is None else bias.exact())

    def into_bias() -> Refusal | None:
        full = shape if bias is None else np.broadcast_shapes(shape, bias.shape)
        return moves.set(node, BIAS, Pending(full, lambda: round_vector(added(), weight.dtype)))

    if bias is not None or len(kept) != 1 or BIAS not in node.adds:
        return into_bias()
    # An addition would take the place of the BatchNorm: first to whoever reads the product.
    vector = Affine.shift_by(added().reshape(-1))
    return moves.first(lambda: moves.consume(node.outputs[0], vector, op.output.index(kept)), into_bias)


def _scale(moves: Moves, node: Node, affine: Affine, letter: str) -> Refusal | None:
    op = cast(Contraction, node.op)
    constants = parameters(moves, node, op.weight_slot)
    if isinstance(constants, Refusal):
        return constants
    weight, axis = constants[0], op.weight.index(letter)
    refusal = _other_size(node, weight, letter, affine)
    if refusal is not None or affine.is_shift:
        return refusal
    factor = along(affine.scale, axis, len(weight.shape))
    scaled = Pending(weight.shape, lambda: round_scaled(weight, factor, axes=(axis,)))
    return moves.set(node, op.weight_slot, scaled)


def _other_size(node: Node, weight: Constant, letter: str, affine: Affine) -> Refusal | None:
    op = cast(Contraction, node.op)
    size = weight.shape[op.weight.index(letter)]
    side = "output" if letter in op.output else "input"
    return None if size == affine.channels else wrong_channels(node, size, affine.channels, side)


def _trimmed(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without leading axes of size 1."""
    while numbers.ndim > 1 and numbers.shape[0] == 1:
        numbers = numbers[0]
    return numbers


def _left_product(label: str, weight: Shape | None, data: Shape | None) -> Contraction | None:
    """A matrix from the left, or a stack of as many as the data has."""
    if weight is None or data is None or not 2 <= len(weight) <= len(data) <= 20:
        return None
    batch = _LETTERS[: len(data) - 2]
    stack = batch[len(data) - len(weight) :]
    if None in weight or weight[:-2] != data[len(data) - len(weight) : -2]:
        return None  # a size of 1 would be broadcast
    return Contraction(label, 0, f"{stack}YZ", f"{batch}ZX", f"{batch}YX")


_LETTERS = "abcdefghijklmnopqrstuvw"


def matmul_from_onnx(call: OnnxCall) -> Op | None:
    """MatMul whose constant is a matrix on the left."""
    left, right = [*call.inputs, None, None][:2]
    if left is None or left.constant is None or right is None or right.constant is not None:
        return None
    return _left_product(call.operator, left.shape, right.shape)


def einsum_from_onnx(call: OnnxCall) -> Op | None:
    """Einsum of a constant and a value; letters that an operand has twice are none of its axes."""
    equation = str(call.attributes.get("equation", "")).replace(" ", "")
    terms, arrow, output = equation.partition("->")
    operands, letters = list(call.inputs), terms.split(",")
    if not arrow or len(letters) != 2 or len(operands) != 2 or "." in equation:
        return None
    slot = next((i for i, v in enumerate(operands) if v is not None and v.constant is not None), None)
    known = [v is not None and v.rank == len(names) for v, names in zip(operands, letters, strict=True)]
    data = None if slot is None else operands[1 - slot]
    if slot is None or data is None or data.constant is not None or not all(known):
        return None
    once = all(len(set(names)) == len(names) for names in (*letters, output)) and set(output) <= set(terms)
    op = Contraction(call.operator, slot, letters[slot], letters[1 - slot], output)
    # Only sizes that are the same on both sides are the axis's own; a 1 may be broadcast.
    shared = set(op.weight) & set(op.data)
    constant = operands[slot]
    equal = all(
        size_along(constant, op.weight.index(x)) == size_along(data, op.data.index(x)) for x in shared
    )
    return op if once and equal and output else None


_PRODUCTS = ("addmm", "linear", "matmul", "mm")


def from_aten(call: AtenCall) -> Mapped | None:
    """``mm`` and ``matmul`` with a stored matrix on the left."""
    name = "other" if call.name == "matmul" else "mat2"
    left, right = call.tensor(), call.tensor(name)
    if left is None or right is None or not call.tensors.is_stored(left):
        return None
    made_by = call.tensors.call(right)
    if call.rank(name) == 2 and (made_by is None or made_by.name not in _PRODUCTS):
        return None  # it may be a matrix that is computed of parameters, and the left one the data
    op = _left_product(call.name, call.shape(), call.shape(name))
    return None if op is None else call.reads(op, "self", name, None)


RULE = Rule("contraction", Contraction, backward, forward)

OPERATOR = Operator(
    Contraction,
    RULE,
    onnx={"Einsum": einsum_from_onnx, "MatMul": matmul_from_onnx},
    aten=(Aten(("matmul",), from_aten), Aten(("mm",), from_aten)),
)
