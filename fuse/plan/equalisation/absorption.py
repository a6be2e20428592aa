"""High-bias absorption: a channel that a ReLU never cuts off hands its constant part on to the next layer.

Where ``v[c] ≥ m[c] > 0`` for every input, ``ReLU(v[c]) = ReLU(v[c] − m[c]) + m[c]``, so the layer in front gives
``v − m``, whose range is smaller, and the layers behind take ``+m`` into their biases. Nagel et al. (2019, section
4.1.3) take ``m = max(0, β − 3γ)``, which holds for most inputs; here m is a bound that holds for all of them: over data
that is never negative a row of weights that are never negative gives at least its bias. Zeros around the data are no
exception, but a layer behind that puts zeros around its own takes no shift exactly, and then nothing is moved.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.activation import Activation
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.pool import Pool
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.operators.rule import Rearrangement, constant_at
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.draft import Draft
from convbn.fuse.plan.drafting.changes import UnfitError
from convbn.fuse.plan.equalisation.groups import as_matrix
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import Edit
from convbn.fuse.view.op import BIAS, DATA, WEIGHT, Other
from convbn.fuse.view.view import View

__all__ = ["absorptions"]

_NEVER_NEGATIVE = frozenset({"relu", "max", "sigmoid", "softmax", "exp", "abs"})


def absorptions(view: View) -> Iterator[tuple[Node, int, tuple[Edit, ...]]]:
    """The edits of each layer whose biases go on, and of how many channels; the caller makes them before the next."""
    for node in view.nodes:
        if not isinstance(node.op, Conv | Linear):
            continue
        value = node.outputs[0]
        behind = [reader.node for reader in value.readers]
        axis = node.op.output_axis_of(value.rank)
        if len(behind) != 1 or value.observed or axis is None or not _is_relu(behind[0]):
            continue
        least = _least(node)
        if least is not None and (least > 0).any():
            edits = _moved(view, node, behind[0], axis, np.maximum(least, 0.0))
            if edits:
                yield node, int((least > 0).sum()), edits


def _moved(
    view: View, node: Node, relu: Node, axis: int, least: NDArray[np.float64]
) -> tuple[Edit, ...] | None:
    value, output, rule = node.outputs[0], relu.outputs[0], rule_for(node.op)
    mover = Node(f"a bias behind {node.name}", BatchNorm(0.0, channel_axis=axis), [value], [], node.scope)
    draft = Draft(view, FuseOptions(), mover, {})
    if (
        rule is None
        or rule.backward is None
        or draft.consume(output, Affine.shift_by(least), axis) is not None
    ):
        return None
    if rule.backward(draft, node, value, Affine.shift_by(-least), axis) is not None:
        return None
    try:
        return draft.edits
    except UnfitError:
        return None


def _least(node: Node) -> NDArray[np.float64] | None:
    """What each output channel is at least, −∞ where nothing is known."""
    weight, bias = constant_at(node, WEIGHT, "weight"), constant_at(node, BIAS, "bias")
    if (
        not isinstance(weight, Constant)
        or not isinstance(bias, Constant)
        or not _never_negative(node.input(DATA))
    ):
        return None
    if isinstance(node.op, Linear) and (node.op.data_factor <= 0 or node.op.transposed_data):
        return None
    factor = node.op.bias_factor if isinstance(node.op, Linear) else 1.0
    least = as_matrix(node, weight.exact()).min(axis=(2, 3)).reshape(-1)
    numbers = bias.exact().reshape(-1)
    return np.where(least >= 0, factor * numbers, -np.inf) if numbers.shape == least.shape else None


def _is_relu(node: Node) -> bool:
    return isinstance(node.op, Activation) and node.op.label.lower() in ("relu", "max")


def _never_negative(value: Value | None) -> bool:
    """Whether a value is at least 0 whatever the input."""
    while value is not None and value.producer is not None:
        op = value.producer.op
        if isinstance(op, Activation | Other):
            return op.label.rsplit(".", 1)[-1].lower() in _NEVER_NEGATIVE
        if not isinstance(op, Rearrangement | Pool):
            return False
        value = value.producer.input(DATA)
    return False
