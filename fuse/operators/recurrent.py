"""LSTM, GRU and RNN behind an affine map: ``W(s·x + t) + Wb = (W·diag(s))x + (Wb + W·t)``.

Exact for every gate, direction, peephole, activation and initial state: the data enters through this sum alone, each
gate of each direction having its own rows of W and its own numbers of the input bias Wb. The recurrent weight and its
bias see the layer's own state and stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Pending, Rule, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node
from convbn.fuse.view.op import DATA, WEIGHT, Labelled, Op

__all__ = ["OPERATOR", "Recurrent"]

BIASES = 3


@dataclass(frozen=True, slots=True)
class Recurrent(Labelled):
    """A recurrent layer over sequences whose features are the last of three axes.

    Slots: data ``[L, N, I]`` or ``[N, L, I]``, input weight ``[D, G·H, I]`` for D directions and G gates, recurrent
    weight ``[D, G·H, H]``, input and recurrent bias ``[D, 2·G·H]``, which may be absent and then are 0.
    """


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``W' = W·diag(s)``, ``Wb' = Wb + W·t``."""
    if slot != DATA or axis != 2:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} does not read the map along its features")
    weight, biases = moves.constant(node, WEIGHT), moves.constant(node, BIASES)
    if isinstance(weight, Refusal):
        return weight
    if isinstance(biases, Refusal):
        return biases
    if weight is None or len(weight.shape) != 3:
        return Refusal(Reason.PARAMETERS_MALFORMED, f"{node.label} has no input weight of three axes")
    directions, rows, features = weight.shape
    if features != affine.channels:
        return wrong_channels(node, features, affine.channels, "input")
    both = (directions, 2 * rows)
    if biases is not None and biases.shape != both:
        return Refusal(
            Reason.PARAMETERS_MALFORMED, f"the bias of {node.label} has shape {list(biases.shape)}"
        )
    if not affine.is_scale:

        def shifted() -> Constant | Refusal:
            total = np.zeros(both) if biases is None else biases.exact().copy()
            total[:, :rows] += weight.exact() @ affine.shift
            return round_vector(total, weight.dtype)

        if (refusal := moves.set(node, BIASES, Pending(both, shifted))) is not None:
            return refusal
    if affine.is_shift:
        return None
    scaled = Pending(weight.shape, lambda: round_scaled(weight, affine.scale.reshape(1, 1, -1), axes=(2,)))
    return moves.set(node, WEIGHT, scaled)


def from_onnx(call: OnnxCall) -> Op | None:
    """LSTM, GRU and RNN."""
    return Recurrent(call.operator) if len(call.inputs) >= 3 else None


RULE = Rule("recurrent", Recurrent, forward=forward)

OPERATOR = Operator(Recurrent, RULE, onnx=dict.fromkeys(("GRU", "LSTM", "RNN"), from_onnx))
