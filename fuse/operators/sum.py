"""Sums and means of any number of values, ``y = (a₁ + … + aₙ)/d`` with d = 1 or n.

With a map ``(s, t)`` behind it: ``s·y + t = (s·a₁ + … + s·aₙ + d·t)/d``: every term takes the scale, one the shift.
With one in front of it, ``aᵢ = s·a' + t``: the other terms take the inverse scale, and ``(s, t/d)`` goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.channelwise_identity import ChannelwiseIdentity
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, size_along
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import Labelled, Op

__all__ = ["OPERATOR", "Sum"]


@dataclass(frozen=True, slots=True)
class Sum(Labelled):
    """The sum of all inputs, divided by ``divisor``, with NumPy's broadcasting."""

    divisor: int


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The scale to all terms, the shift to one: the one that the fewest others read, or else the next."""
    terms = _terms(node, affine, axis)
    if isinstance(terms, Refusal):
        return terms
    plain = Affine.scale_by(affine.scale)
    shifted = Affine(affine.scale, affine.shift * cast(Sum, node.op).divisor)

    def to_all(carrier: Value) -> Refusal | None:
        for term in terms:
            refusal = moves.produce(term, shifted if term is carrier else plain, axis, reader=node)
            if refusal is not None:
                return refusal
        return None

    carriers = sorted(terms, key=lambda term: len(term.readers))[:2]
    return moves.first(*(partial(to_all, carrier) for carrier in carriers))


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """The inverse scale to the others, the map on to the readers."""
    terms = _terms(node, affine, axis)
    inverse = Affine.scale_by(affine.scale).inverse()
    if isinstance(terms, Refusal):
        return terms
    if inverse is None:
        return Refusal(Reason.ILL_CONDITIONED, f"a scale of 0 cannot be taken out of {node.label}")
    for other, term in enumerate(terms):
        refusal = None if other == slot else moves.produce(term, inverse, axis, reader=node)
        if refusal is not None:
            return refusal
    onward = Affine(affine.scale, affine.shift / cast(Sum, node.op).divisor)
    return moves.consume(node.outputs[0], onward, axis)


def _terms(node: Node, affine: Affine, axis: int) -> list[Value] | Refusal:
    """The terms, where each of them flows and has the map's channels."""
    rank, terms = node.outputs[0].rank, [value for value in node.inputs if value is not None]
    fit = all(
        term.constant is None and term.rank == rank and size_along(term, axis) == affine.channels
        for term in terms
    )
    if rank is None or not fit or len({id(term) for term in terms}) != len(node.inputs):
        return Refusal(
            Reason.AXIS_NOT_PROVEN, f"the terms of {node.label} do not all have the map's channels"
        )
    return terms


def from_onnx(call: OnnxCall) -> Op | None:
    """Sum and Mean; a sum of two is an addition, and that of one is its term."""
    if len(call.inputs) == 1:
        return ChannelwiseIdentity(call.operator)
    if call.operator == "Sum" and len(call.inputs) == 2:
        return Elementwise(Arithmetic.ADD)
    return Sum(call.operator, len(call.inputs) if call.operator == "Mean" else 1)


RULE = Rule("sum", Sum, backward, forward, through=True)

OPERATOR = Operator(Sum, RULE, onnx=dict.fromkeys(("Mean", "Sum"), from_onnx))
