"""The law of :mod:`support.rule_laws` for layers that take a map into numbers of their own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.conv_transpose import ConvTranspose
from convbn.fuse.operators.normalization import Normalization
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Constant, Node
from support.rule_laws import Moves, mapped

RNG = np.random.default_rng(5)


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return (RNG.uniform(0.5, 2, shape) * RNG.choice([-1, 1], shape)).astype(dtype)


def computed(at: Node, operands: list[np.ndarray | None]) -> np.ndarray:
    """What a node gives, in float64."""
    op, (x, *parameters) = at.op, operands
    assert x is not None
    if isinstance(op, BatchNorm | Normalization):
        if isinstance(op, BatchNorm):
            gamma, beta, mean, variance = (None if p is None else p[:, None] for p in parameters)
            assert variance is not None
            normal = (x - mean) / np.sqrt(variance + op.epsilon)
        else:
            # γ and β act along an axis that is not normalised, too; which statistics it takes does not matter.
            normal = np.tanh(x)
            shape = [-1 if i == op.output_axis_of(x.ndim) else 1 for i in range(x.ndim)]
            gamma, beta = (None if p is None else p.reshape(shape) for p in (*parameters, None)[:2])
        return np.asarray((1.0 if gamma is None else gamma) * normal + (0.0 if beta is None else beta))
    assert isinstance(op, Conv | ConvTranspose)
    if isinstance(op, ConvTranspose) and op.groups > 1:
        # onnx's own reference takes no groups here.
        single = Node(at.name, ConvTranspose(1), at.inputs, at.outputs)
        weight, bias = parameters
        assert weight is not None
        parts = np.split(x, op.groups, 1), np.split(weight, op.groups)
        biases = [None] * op.groups if bias is None else np.split(bias, op.groups)
        return np.concatenate([computed(single, list(part)) for part in zip(*parts, biases, strict=True)], 1)
    attributes: dict[str, Any] = {"group": op.groups}
    if isinstance(op, Conv) and op.window is not None:
        attributes |= {"strides": op.window.strides, "pads": [*op.window.begin, *op.window.end]}
    feeds = {f"i{i}": array for i, array in enumerate(operands) if array is not None}
    names = [f"i{i}" if array is not None else "" for i, array in enumerate(operands)]
    graph = helper.make_graph(
        [helper.make_node(type(op).__name__, names, ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in feeds],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return np.asarray(ReferenceEvaluator(built).run(None, feeds)[0])


def operands_of(at: Node, moves: Moves | None = None) -> list[np.ndarray | None]:
    """Data with the shape that the view says, and the constants as they are or were set."""
    data = at.input(0)
    assert data is not None
    assert data.shape is not None
    rng = np.random.default_rng(3)
    found: list[np.ndarray | None] = [rng.uniform(0.5, 2, [n or 1 for n in data.shape])]
    for slot in range(1, 5 if isinstance(at.op, BatchNorm) else 3):
        value = at.input(slot)
        constant = None if value is None else value.constant
        if moves is not None and slot in moves.constants:
            constant = moves.constants[slot]
        found.append(None if constant is None else constant.exact())
    return found


def backward(at: Node, found: Affine, axis: int = 1, refused: Collection[int | str] = ()) -> Moves | Refusal:
    moves, rule = Moves(refused), rule_for(at.op)
    assert rule is not None
    assert rule.backward is not None
    stopped = rule.backward(moves, at, at.outputs[0], found, axis)
    if stopped is not None:
        return stopped
    after = computed(at, operands_of(at, moves))
    np.testing.assert_allclose(
        after, mapped(found, computed(at, operands_of(at)), axis), rtol=1e-11, atol=1e-11
    )
    return moves


def forward(
    at: Node, found: Affine, axis: int = 1, refused: Collection[int | str] = (), slot: int = 0
) -> Moves | Refusal:
    moves, rule = Moves(refused), rule_for(at.op)
    assert rule is not None
    assert rule.forward is not None
    stopped = rule.forward(moves, at, slot, found, axis)
    if stopped is not None:
        return stopped
    before = operands_of(at)
    assert before[0] is not None
    before[0] = mapped(found, before[0], axis)
    np.testing.assert_allclose(
        computed(at, operands_of(at, moves)), computed(at, before), rtol=1e-11, atol=1e-11
    )
    return moves


def done(answer: Moves | Refusal) -> dict[int, Constant]:
    assert isinstance(answer, Moves), answer
    assert not answer.asked
    return answer.constants


def put(at: Node, slot: int, array: np.ndarray) -> Node:
    value = at.input(slot)
    assert value is not None
    value.constant, value.shape = Constant.of(array), array.shape
    return at
