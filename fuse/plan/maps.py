"""Which affine map a node is: a BatchNorm in inference, or a sum or product with one number a channel.

The product and the sum at the end of a LayerNorm that is written out in simple operators are left alone. Runtimes know
that pattern and make one operator of it, which applies γ and β on its way; without them it is six operators.
"""

from __future__ import annotations

import numpy as np

from convbn.fuse.algebra.affine import Affine, from_batchnorm
from convbn.fuse.algebra.broadcast import per_channel, shaped
from convbn.fuse.algebra.rounding import is_floating
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.mean import Mean
from convbn.fuse.operators.rule import constant_at
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value

__all__ = ["affine_of", "data_slot"]


def affine_of(node: Node) -> tuple[Affine, int] | Refusal:
    """The affine map that a node is and the axis it works along, or why it is none."""
    if isinstance(node.op, Elementwise):
        return _affine_of_elementwise(node, node.op.operation)
    op = node.op
    if not isinstance(op, BatchNorm):
        raise TypeError(f"{node.label} is not an affine map")
    if op.training:
        return Refusal(Reason.TRAINING_MODE, "it normalises by the mean and variance of the batch at hand")
    used = [output.name for output in node.outputs[1:] if output.readers or output.observed]
    if used:
        return Refusal(Reason.EXTRA_OUTPUTS, f"its further outputs are used: {', '.join(used)}")
    arrays = []
    for slot, what in enumerate(("scale γ", "shift β", "mean μ", "variance σ²"), start=1):
        constant = constant_at(node, slot, what)
        if isinstance(constant, Refusal):
            if constant.reason is Reason.WEIGHT_NOT_CONSTANT:
                return Refusal(Reason.PARAMETERS_NOT_CONSTANT, constant.sentence)
            return constant
        arrays.append(None if constant is None else constant.exact())
    gamma, beta, mean, variance = arrays
    if mean is None or variance is None:
        return Refusal(Reason.PARAMETERS_MALFORMED, "it has no running mean or no running variance")
    ranks = [value.rank for value in (node.input(0), *node.outputs[:1]) if value is not None]
    if any(rank is not None and rank <= op.channel_axis for rank in ranks):
        return Refusal(Reason.PARAMETERS_MALFORMED, "its input has no axis of channels")
    affine = from_batchnorm(gamma, beta, mean, variance, op.epsilon)
    return affine if isinstance(affine, Refusal) else (affine, op.channel_axis)


def data_slot(node: Node) -> int:
    """Where the data comes in: a sum or product may have its constant on either side."""
    first = node.input(0)
    return 1 if isinstance(node.op, Elementwise) and first is not None and first.constant is not None else 0


def _affine_of_elementwise(node: Node, operation: Arithmetic) -> tuple[Affine, int] | Refusal:
    """``x ± c``, ``x·c`` and ``x/c`` with one number a channel."""
    no = Refusal(
        Reason.NOT_PER_CHANNEL, lambda: f"{node.label} is no map of one value with one number a channel"
    )
    slot = data_slot(node)
    data, other, rank = node.input(slot), node.input(1 - slot), node.outputs[0].rank
    if data is None or other is None or other.constant is None or data.constant is not None:
        return no
    if not rank or data.rank != rank or data.shape is None or not is_floating(other.constant.dtype):
        return no
    axis = per_channel(other.constant.shape, rank)
    if axis is None:
        return no
    axis = axis if axis >= 0 else min(1, rank - 1)
    channels = data.shape[axis]
    if channels is None or (operation is Arithmetic.DIVIDE and slot == 1):
        return no
    constant = other.constant.exact()
    if constant.size not in (1, channels) or not np.isfinite(constant).all() or _ends_layernorm(data, axis):
        return no
    vector = shaped(constant, channels).copy()
    if operation is Arithmetic.ADD:
        return Affine.shift_by(vector), axis
    if operation is Arithmetic.SUBTRACT:
        return (Affine.shift_by(-vector) if slot == 0 else Affine(-np.ones(channels), vector)), axis
    if operation is Arithmetic.MULTIPLY:
        return Affine.scale_by(vector), axis
    return no if not vector.all() else (Affine.scale_by(1 / vector), axis)


_PATTERN = 8
"""Operators between a LayerNorm's mean of squares and the product with γ, at most."""


def _ends_layernorm(data: Value, axis: int) -> bool:
    """Whether ``data`` is what a written-out LayerNorm over the last axis gives, with or without its γ."""
    node = data.producer
    if node is not None and isinstance(node.op, Elementwise) and not _combines(node):
        inner = node.input(data_slot(node))
        node = None if inner is None else inner.producer
    if node is None or data.rank is None or axis != data.rank - 1 or not _combines(node):
        return False
    waiting, seen = [(value, 0) for value in node.inputs], set[int]()
    while waiting:
        value, depth = waiting.pop()
        producer = None if value is None else value.producer
        if producer is None or depth > _PATTERN or id(producer) in seen:
            continue
        seen.add(id(producer))
        if isinstance(producer.op, Mean):
            if axis in producer.op.axes:
                return True
            continue
        waiting.extend((operand, depth + 1) for operand in producer.inputs)
    return False


def _combines(node: Node) -> bool:
    """Whether a node multiplies or divides two values that both flow."""
    if not isinstance(node.op, Elementwise) or len(node.inputs) != 2:
        return False
    if node.op.operation not in (Arithmetic.MULTIPLY, Arithmetic.DIVIDE):
        return False
    return all(value is not None and value.constant is None for value in node.inputs)
