"""Activation functions that are written out in simple operators, and why nothing may move into or out of them.

GELU, SiLU, Mish or HardSwish are often stored as sums, products and an ``Erf`` or ``Tanh``. Runtimes recognise the
whole and run it as one kernel: onnxruntime has ``Gelu``, ``FastGelu``, ``BiasGelu`` and ``QuickGelu``, TensorRT and
OpenVINO the like. They look for exact numbers, so a ½ that moves into the next layer, which is exact algebra, leaves
five kernels in the place of one: 8 × Conv and GELU took 1.4 times as long in its erf form, 1.6 times in its tanh form.

What is recognised here is the common shape and not a list of formulas: a product or sum whose operands all come from
one value, through operators that work on each element alone and scalar constants, at least one of them no polynomial.
Such a node computes ``f(x)`` for one scalar function f.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from convbn.fuse.operators.activation import Activation
from convbn.fuse.operators.elementwise import Elementwise
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import Other
from convbn.fuse.view.view import View

__all__ = ["keep_whole"]

_LARGEST = 16
"""Operators of a written-out activation, at most; the longest known one, GELU by tanh, has nine."""

_BENDS = frozenset({"erf", "tanh", "sigmoid", "softplus", "hardsigmoid", "clip", "exp", "log"})
"""Functions of one element, by their ONNX or ATen names in small letters, that make an activation of a polynomial."""

_POWERS = frozenset({"pow", "square", "identity"})

_FACTORS: Mapping[str, float] = {"erf": 0.5, "tanh": 0.5, "clip": 1 / 6}
"""The factor that belongs to the formula when it stands behind the product: ½ of GELU, ⅙ of HardSwish."""


def keep_whole(view: View) -> None:
    """Lock every operator of a written-out activation: its constants stay, and none of them is taken out.

    Args:
        view: the dataflow of a model as it was captured; locks are added to its nodes.
    """
    position = {id(node): index for index, node in enumerate(view.nodes)}
    for node in view.nodes:
        for part in _written_out(node, position):
            refusal = Refusal(
                Reason.KERNEL_PATTERN,
                f"{part.label} belongs to an activation function that runtimes run as one kernel",
            )
            for key in ("bypass", *range(len(part.inputs))):
                part.locks.setdefault(key, refusal)


def _written_out(node: Node, position: Mapping[int, int]) -> Iterator[Node]:
    """The operators of the activation that ends in ``node`` or in a factor behind it; nothing if there is none."""
    flowing = _flowing(node)
    if not isinstance(node.op, Elementwise) or len(flowing) != 2:
        return
    parts = {id(node): node}
    waiting = {id(value): value for value in flowing}
    bends = set[str]()
    while len(waiting) > 1:
        # The value that is computed last cannot be the one that all the others come from.
        value = max(waiting.values(), key=lambda v: -1 if v.producer is None else position[id(v.producer)])
        producer = value.producer
        name = None if producer is None or producer.scope != node.scope else _function(producer)
        if producer is None or name is None or len(parts) == _LARGEST:
            return
        if name in _BENDS:
            bends.add(name)
        parts[id(producer)] = producer
        del waiting[id(value)]
        waiting |= {id(operand): operand for operand in _flowing(producer)}
    if not bends:
        return
    yield from parts.values()
    yield from _factor_behind(node, {_FACTORS[name] for name in bends if name in _FACTORS})


def _factor_behind(node: Node, factors: set[float]) -> Iterator[Node]:
    """The product with one of these factors, if nothing else reads what ``node`` gives."""
    readers = node.outputs[0].readers
    if len(readers) != 1 or node.outputs[0].observed:
        return
    behind = readers[0].node
    if not isinstance(behind.op, Elementwise):
        return
    for value in behind.inputs:
        if value is None or value.constant is None or not _is_scalar(value):
            continue
        number = float(value.constant.exact().reshape(()))
        if any(abs(number - factor) < 1e-3 * factor or abs(number * factor - 1) < 1e-3 for factor in factors):
            yield behind


def _flowing(node: Node) -> list[Value]:
    """What the node reads that is no constant."""
    return [value for value in node.inputs if value is not None and value.constant is None]


def _function(node: Node) -> str | None:
    """What an operator does to each element, alone or with scalar constants; None if it does anything else."""
    if len(node.outputs) != 1 or node.outputs[0].observed:
        return None
    if any(v is not None and v.constant is not None and not _is_scalar(v) for v in node.inputs):
        return None
    if isinstance(node.op, Elementwise):
        return str(node.op.operation).lower()
    if isinstance(node.op, Activation):
        return "activation" if len(_flowing(node)) == 1 else None
    if isinstance(node.op, Other) and len(_flowing(node)) == 1:
        name = node.op.label.rsplit(".", 1)[-1].lower()
        return name if name in _BENDS | _POWERS else None
    return None


def _is_scalar(value: Value) -> bool:
    return value.shape is not None and all(size == 1 for size in value.shape)
