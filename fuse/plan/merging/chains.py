"""Linear layers in a row become one where that costs less (:mod:`convbn.fuse.algebra.compose`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from convbn.fuse.algebra.compose import composed_bias, composed_weight, composition
from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.registry import CHAIN
from convbn.fuse.operators.rule import constant_at
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.merging.branches import conv_layer
from convbn.fuse.plan.merging.cost import chain_pays
from convbn.fuse.plan.merging.merger import Merge
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import Bypass, Edit, Replace, SetConstant
from convbn.fuse.view.op import BIAS, DATA, WEIGHT
from convbn.fuse.view.view import View

__all__ = ["merge_chains"]


def merge_chains(view: View, options: FuseOptions) -> Iterator[Merge]:
    """Make every such merge, one by one; the view is brought up to date before each is given out."""
    if not options.allows(CHAIN):
        return
    for second in [node for node in view.nodes if isinstance(node.op, Conv | Linear)]:
        while (merge := _merge(view, second)) is not None:
            yield merge


def _merge(view: View, second: Node) -> Merge | None:
    first = _only_feeds(second)
    if first is None:
        return None
    edits = _conv_edits(first, second) if isinstance(second.op, Conv) else _linear_edits(first, second)
    if edits is None or any(view.check(edit) is not None for edit in edits):
        return None
    for edit in edits:
        view.apply(edit)
    return Merge((first,), second, CHAIN, edits)


def _only_feeds(second: Node) -> Node | None:
    """What gives the data of ``second`` and is read by nobody else."""
    data = second.input(DATA)
    first = None if data is None else data.producer
    if data is None or first is None or first.scope != second.scope:
        return None
    return None if data.observed or len(data.readers) != 1 or len(first.outputs) != 1 else first


def _conv_edits(first: Node, second: Node) -> tuple[Edit, ...] | None:
    before, after, source = conv_layer(first), conv_layer(second), first.input(DATA)
    if before is None or after is None or source is None or source.constant is not None:
        return None
    (one, w1, b1), (two, w2, b2) = before, after
    form = composition(one, two)
    if form is None or not chain_pays(form, one, two):
        return None
    if b1 is not None and two.window.padded:
        return None
    weight = composed_weight(one, w1.exact(), two, w2.exact())
    biases = [] if b1 is None else [composed_bias(b1.exact(), two, w2.exact())]
    biases += [] if b2 is None else [b2.exact()]
    merged = round_sum(weight, w2.dtype)
    bias = round_vector(np.sum(biases, axis=0), w2.dtype) if biases else None
    if isinstance(merged, Refusal) or isinstance(bias, Refusal):
        return None
    op = Conv(form.groups, cast(Conv, second.op).channel_axis, form.window)
    return Bypass(first, DATA), Replace(second, op, (source, merged, bias))


def _linear_edits(first: Node, second: Node) -> tuple[Edit, ...] | None:
    """``(x·A + a)·B + b = x·(A·B) + (a·B + b)``; the factors of a Gemm go into the numbers."""
    before, after = _linear(first), _linear(second)
    if before is None or after is None:
        return None
    (one, a, w1), (two, b, w2) = before, after
    matrix, product = w2.exact(), w1.exact() if one.output_axis == 1 else w1.exact().T
    right = matrix if two.output_axis == 1 else matrix.T
    if product.shape[1] != right.shape[0]:
        return None
    composed = one.data_factor * (product @ right)
    if composed.size > w1.exact().size + matrix.size or not two.bias_factor:
        return None
    merged = round_sum(composed if two.output_axis == 1 else composed.T, w2.dtype)
    if isinstance(merged, Refusal):
        return None
    edits: list[Edit] = [Bypass(first, DATA), SetConstant(second, WEIGHT, merged)]
    if a is not None:
        row = one.bias_factor * two.data_factor / two.bias_factor * (_row(a, right.shape[0]) @ right)
        total = row if b is None else row + _row(b, right.shape[1])
        bias = round_vector(total, w2.dtype)
        if isinstance(bias, Refusal):
            return None
        edits.append(SetConstant(second, BIAS, bias))
    return tuple(edits)


def _linear(node: Node) -> tuple[Linear, Constant | None, Constant] | None:
    weight, bias, data = (
        constant_at(node, WEIGHT, "weight"),
        constant_at(node, BIAS, "bias"),
        node.input(DATA),
    )
    if not isinstance(node.op, Linear) or node.op.transposed_data or not isinstance(weight, Constant):
        return None
    if isinstance(bias, Refusal) or len(weight.shape) != 2 or not _flows(data):
        return None
    outputs = weight.shape[node.op.output_axis]
    if bias is not None and bias.shape not in ((), (1,), (outputs,), (1, 1), (1, outputs)):
        return None
    return node.op, bias, weight


def _flows(value: Value | None) -> bool:
    return value is not None and value.constant is None


def _row(bias: Constant, size: int) -> np.ndarray:
    return np.broadcast_to(bias.exact().reshape(-1), (size,))
