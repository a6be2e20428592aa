"""The law that every rule keeps, held against one node: what the node computes before and after.

Backward: the node over changed operands gives the map of what it gave. Forward: the node over an operand that lost its
map gives what becomes the old output by the maps that its readers were asked to apply.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.channelwise_identity import ChannelwiseIdentity
from convbn.fuse.operators.concat import Concat
from convbn.fuse.operators.contraction import Contraction
from convbn.fuse.operators.depth_to_space import DepthToSpace
from convbn.fuse.operators.dequantize import Dequantize
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.gather import Gather
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.mean import Mean
from convbn.fuse.operators.negation import Negation
from convbn.fuse.operators.recurrent import Recurrent
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.operators.repeat import Repeat
from convbn.fuse.operators.reshape import Reshape
from convbn.fuse.operators.rule import Axes, Pending, constant_at
from convbn.fuse.operators.scatter import Scatter
from convbn.fuse.operators.slice import Slice
from convbn.fuse.operators.transpose import Transpose
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.op import Op

NO = Refusal(Reason.TOO_FAR, "refused by the test")

ARITHMETIC = {
    Arithmetic.ADD: np.add,
    Arithmetic.SUBTRACT: np.subtract,
    Arithmetic.MULTIPLY: np.multiply,
    Arithmetic.DIVIDE: np.divide,
}


@dataclass
class Moves:
    """What a rule may ask for, noted; yes to all but the operands (by slot) and outputs (by name) in ``refused``."""

    refused: Collection[int | str] = ()
    constants: dict[int, Constant] = field(default_factory=dict)
    produced: list[tuple[Value, Affine, Axes]] = field(default_factory=list)
    consumed: list[tuple[Value, Affine, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def constant(self, node: Node, slot: int) -> Constant | Refusal | None:
        return self.constants.get(slot) or constant_at(node, slot, "constant")

    def set(self, node: Node, slot: int, constant: Constant | Pending | Refusal) -> Refusal | None:
        assert isinstance(node, Node)
        if isinstance(constant, Pending):
            shape, constant = constant.shape, constant.compute()
            assert isinstance(constant, Refusal) or constant.shape == shape
        if isinstance(constant, Refusal):
            return constant
        if slot in self.refused:
            return NO
        self.constants[slot] = constant
        return None

    def become(self, node: Node, op: Op) -> Refusal | None:
        if "become" in self.refused:
            return NO
        node.op = op
        return None

    def changes(self, value: Value) -> None:
        self.asked.append(value.name)

    def produce(self, value: Value, affine: Affine, axis: Axes, *, reader: Node) -> Refusal | None:
        assert any(r.node is reader for r in value.readers)
        self.asked.append(value.name)
        if value.name in self.refused:
            return NO
        self.produced.append((value, affine, axis))
        return None

    def produce_all(
        self, parts: Sequence[tuple[Value, Affine]], axis: int, *, reader: Node
    ) -> Refusal | None:
        answers = (self.produce(value, affine, axis, reader=reader) for value, affine in parts)
        return next((refusal for refusal in answers if refusal is not None), None)

    def consume(self, value: Value, affine: Affine, axis: int) -> Refusal | None:
        self.asked.append(value.name)
        if value.name in self.refused:
            return NO
        self.consumed.append((value, affine, axis))
        return None

    def unnoticed(self, value: Value, affine: Affine, axis: int) -> Refusal | None:
        return NO

    def first(self, *attempts: Callable[[], Refusal | None]) -> Refusal | None:
        refusal: Refusal | None = None
        for attempt in attempts:
            kept = dict(self.constants), list(self.produced), list(self.consumed)
            refusal = attempt()
            if refusal is None:
                return None
            self.constants, self.produced, self.consumed = kept
        return refusal


def node(op: Op, *operands: Any, output: Sequence[int | None] | None) -> Node:
    """A node over constants (arrays), flowing values (shapes; None for no known rank) and what is a Value already."""
    inputs: list[Value | None] = []
    for slot, operand in enumerate(operands):
        if isinstance(operand, np.ndarray):
            inputs.append(Value(f"c{slot}", operand.shape, constant=Constant.of(operand)))
        elif isinstance(operand, Value) or operand is ...:
            inputs.append(None if operand is ... else operand)
        else:
            inputs.append(Value(f"v{slot}", None if operand is None else tuple(operand)))
    result = Value("out", None if output is None else tuple(output))
    built = Node("n", op, inputs, [result])
    result.producer = built
    for slot, value in enumerate(inputs):
        if value is not None:
            value.readers.append(Reader(built, slot))
    return built


def affine(channels: int, kind: str = "both") -> Affine:
    """A map with numbers of both signs: "both", "scale" or "shift"."""
    rng = np.random.default_rng(channels)
    scale = rng.uniform(0.5, 2, channels) * np.where(np.arange(channels) % 2, -1.0, 1.0)
    shift = rng.uniform(0.5, 2, channels) * np.where(np.arange(channels) % 3, -1.0, 1.0)
    return Affine(
        np.ones(channels) if kind == "shift" else scale, np.zeros(channels) if kind == "scale" else shift
    )


def spread(numbers: np.ndarray, axes: Axes, rank: int) -> np.ndarray:
    """A vector as it broadcasts along one axis; along several it must be given in their shape."""
    if isinstance(axes, int):
        axes, numbers = (axes,), numbers.reshape(-1)
    numbers = numbers.transpose(np.argsort(axes))
    return np.expand_dims(numbers, tuple(axis for axis in range(rank) if axis not in axes))


def mapped(found: Affine, data: np.ndarray, axes: Axes) -> np.ndarray:
    """``s·x + t`` along an axis or several."""
    sizes = [data.shape[axis] for axis in ((axes,) if isinstance(axes, int) else axes)]
    assert np.prod(sizes) == found.channels, "the map has another number of channels than its axes"
    scale, shift = (spread(v.reshape(sizes), axes, data.ndim) for v in (found.scale, found.shift))
    return cast("np.ndarray", scale * data + shift)


def blocks(x: np.ndarray, op: DepthToSpace) -> np.ndarray:
    """As ONNX's text defines the modes; a channel-major SpaceToDepth is PyTorch's ``pixel_unshuffle``."""
    n, c, height, width = x.shape
    r = op.block
    if op.to_space:
        few = c // r**2
        parts = (
            x.reshape(n, few, r, r, height, width)
            if op.channel_major
            else x.reshape(n, r, r, few, height, width)
        )
        order = (0, 1, 4, 2, 5, 3) if op.channel_major else (0, 3, 4, 1, 5, 2)
        return parts.transpose(order).reshape(n, few, height * r, width * r)
    parts = x.reshape(n, c, height // r, r, width // r, r)
    order = (0, 1, 3, 5, 2, 4) if op.channel_major else (0, 3, 5, 1, 2, 4)
    return parts.transpose(order).reshape(n, c * r**2, height // r, width // r)


def contracted(op: Contraction, operands: Sequence[Any]) -> np.ndarray:
    """Σ over the letters that the output lacks, and a bias."""
    letters = [op.weight, op.data] if op.weight_slot == 0 else [op.data, op.weight]
    product = np.einsum(f"{','.join(letters)}->{op.output}", *operands[:2])
    bias = operands[2] if len(operands) > 2 and operands[2] is not None else 0.0
    return cast("np.ndarray", product + bias)


def repeated(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Element i along an axis is element ``i mod C`` of the data, whose axes are the last ones."""
    full = x.reshape([1] * (len(shape) - x.ndim) + list(x.shape))
    places = (np.arange(size) % own for size, own in zip(shape, full.shape, strict=True))
    return cast("np.ndarray", full[np.ix_(*places)])


COMBINED = {"add": np.add, "max": np.maximum, "min": np.minimum}


def scattered(op: Scatter, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    """As ScatterElements and ScatterND say, or ``index_add`` where the indices are a vector."""
    index: list[Any] = list(np.ix_(*map(range, updates.shape)))
    indices = indices.astype(np.intp)
    if op.label == "ScatterND":
        index = [np.expand_dims(indices[..., axis], tuple(range(1, x.ndim))) for axis in op.axes] + index[1:]
    else:
        (axis,) = op.axes
        vector = indices.ndim < x.ndim
        index[axis] = np.expand_dims(indices, tuple(range(1, x.ndim - axis))) if vector else indices
    result = x.copy()
    if op.reduction == "none":
        result[tuple(index)] = updates
    else:
        COMBINED[op.reduction].at(result, tuple(index), updates)
    return result


def recurred(x: np.ndarray, weight: np.ndarray, own: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """``h = tanh(W·x + R·h + Wb + Rb)`` over ``[L, N, I]``, forwards and perhaps backwards."""
    hidden, states = own.shape[2], []
    for direction in range(len(weight)):
        h, line = np.zeros((x.shape[1], hidden)), x if direction == 0 else x[::-1]
        both = 0.0 if bias is None else bias[direction, :hidden] + bias[direction, hidden:]
        for step in line:
            h = np.tanh(step @ weight[direction].T + h @ own[direction].T + both)
            states.append(h)
    return np.stack(states)


def computed(at: Node, operands: Sequence[Any]) -> np.ndarray:
    """What the node gives, in float64."""
    op, (x, *rest) = at.op, operands
    if isinstance(op, Contraction):
        return contracted(op, operands)
    if isinstance(op, Scatter):
        return scattered(op, x, *rest)
    if isinstance(op, Recurrent):
        return recurred(x, rest[0], rest[1], rest[2] if len(rest) > 2 else None)
    if isinstance(op, Elementwise):
        return cast("np.ndarray", ARITHMETIC[op.operation](x, rest[0]))
    if isinstance(op, Concat):
        return np.stack(operands, op.axis) if op.stacked else np.concatenate(operands, op.axis)
    if isinstance(op, Transpose):
        return cast("np.ndarray", x.transpose(op.order))
    if isinstance(op, Mean):
        return cast("np.ndarray", x.mean(op.axes, keepdims=op.keepdims))
    if isinstance(op, Reshape):
        return cast("np.ndarray", x.reshape(at.outputs[0].shape))
    if isinstance(op, Repeat):
        return repeated(x, cast("Any", at.outputs[0].shape))
    if isinstance(op, Negation):
        return cast("np.ndarray", -x)
    if isinstance(op, Slice):
        for axis, positions in op.cuts:
            x = x.take(positions, axis)
        return cast("np.ndarray", x)
    if isinstance(op, Gather):
        return cast("np.ndarray", x.take(0 if op.single else np.asarray(rest[0], np.intp), op.axis))
    if isinstance(op, DepthToSpace):
        return blocks(x, op)
    if isinstance(op, Dequantize):
        zero = rest[1] if len(rest) > 1 else np.zeros(1)
        along = 0 if op.axis is None else op.axis
        return cast("np.ndarray", spread(rest[0], along, x.ndim) * (x - spread(zero, along, x.ndim)))
    if isinstance(op, Linear):
        matrix = rest[0] if op.output_axis == 1 else rest[0].T
        bias = rest[1] if len(rest) > 1 and rest[1] is not None else 0.0
        return cast("np.ndarray", op.data_factor * (x @ matrix) + op.bias_factor * bias)
    assert isinstance(op, ChannelwiseIdentity)
    return cast("np.ndarray", x)


def _operands(at: Node) -> list[Any]:
    rng = np.random.default_rng(3)
    return [
        None
        if value is None
        else value.constant.exact()
        if value.constant is not None
        else rng.uniform(0.5, 2, cast("Any", value.shape)) * rng.choice([-1, 1], cast("Any", value.shape))
        for value in at.inputs
    ]


def _changed(at: Node, operands: list[Any], moves: Moves) -> list[Any]:
    after = list(operands)
    for slot, value in enumerate(at.inputs):
        for moved, found, axes in moves.produced:
            if moved is value:
                after[slot] = mapped(found, after[slot], axes)
    for slot, constant in moves.constants.items():
        old = at.input(slot)
        if old is not None and old.constant is not None:
            assert constant.dtype == old.constant.dtype
        after += [None] * (slot + 1 - len(after))
        after[slot] = constant.exact()
    return after


def backward(at: Node, found: Affine, axis: Axes, refused: Collection[int | str] = ()) -> Moves | Refusal:
    """Move a map, along one axis or several, into a node; a refusal, or what was asked for, with the law checked."""
    moves, rule = Moves(refused), rule_for(at.op)
    assert rule is not None
    if isinstance(axis, int):
        assert rule.backward is not None
        refusal = rule.backward(moves, at, at.outputs[0], found, axis)
    else:
        assert rule.multi_axis is not None
        refusal = rule.multi_axis(moves, at, at.outputs[0], found, axis)
    if refusal is not None:
        return refusal
    before = _operands(at)
    np.testing.assert_allclose(
        computed(at, _changed(at, before, moves)), mapped(found, computed(at, before), axis), rtol=1e-9
    )
    return moves


def forward(
    at: Node, slot: int, found: Affine, axis: int, refused: Collection[int | str] = ()
) -> Moves | Refusal:
    """Move a map that is in front of ``slot`` past a node; a refusal, or what was asked for, with the law checked."""
    moves, rule = Moves(refused), rule_for(at.op)
    assert rule is not None
    assert rule.forward is not None
    refusal = rule.forward(moves, at, slot, found, axis)
    if refusal is not None:
        return refusal
    after = _operands(at)
    before = list(after)
    before[slot] = mapped(found, after[slot], axis)
    result = computed(at, _changed(at, after, moves))
    for value, onward, place in moves.consumed:
        assert value is at.outputs[0]
        result = mapped(onward, result, place)
    np.testing.assert_allclose(result, computed(at, before), rtol=1e-9, atol=1e-12)
    return moves


def took(answer: Moves | Refusal) -> Moves:
    """What was asked for, where nothing was refused."""
    assert isinstance(answer, Moves), answer
    return answer


def refusal(answer: Moves | Refusal) -> tuple[str, str]:
    """Reason and detail of a refusal."""
    assert isinstance(answer, Refusal), "it was not refused"
    return str(answer.reason), answer.detail


def reason(answer: Moves | Refusal) -> str:
    """Reason of a refusal."""
    return refusal(answer)[0]
