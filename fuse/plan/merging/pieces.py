"""Convolutions of the pieces of a split, concatenated, are one convolution in groups.

``concat(W₁∗x₁, …, Wₙ∗xₙ)`` with x in n pieces by channels is ``W∗x`` in n times as many groups, W being the Wᵢ in a
row: the same numbers in the same places. It costs the same multiplications, and neither the split nor the
concatenation. OpenVINO does so by itself where the convolutions have no bias, which a fold gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from convbn.fuse.algebra.kernels import Form
from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.concat import Concat
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.registry import PIECES
from convbn.fuse.operators.split import Split
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.merging.branches import conv_layer
from convbn.fuse.plan.merging.merger import Merge
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import Replace
from convbn.fuse.view.op import DATA
from convbn.fuse.view.view import View

__all__ = ["merge_pieces"]


def merge_pieces(view: View, options: FuseOptions) -> Iterator[Merge]:
    """Make every such merge, one by one; the view is brought up to date before each is given out."""
    if not options.allows(PIECES):
        return
    for node in [node for node in view.nodes if isinstance(node.op, Concat)]:
        merge = _merge(view, node)
        if merge is not None:
            view.apply(merge.edits[0])
            yield merge


def _merge(view: View, concat: Node) -> Merge | None:
    convs = [_alone(value, concat) for value in concat.inputs]
    layers = [conv for conv in convs if conv is not None]
    split = _split_of(layers) if len(layers) == len(convs) > 1 else None
    data = None if split is None else split.input(DATA)
    known = [found for conv in layers if (found := conv_layer(conv)) is not None]
    if split is None or data is None or len(known) < len(layers) or cast(Concat, concat.op) != Concat(1):
        return None
    form, stored, _ = known[0]
    if any(other != form or weight.dtype != stored.dtype for other, weight, _ in known):
        return None
    outputs = form.shape[0]
    weight = round_sum(np.concatenate([weight.exact() for _, weight, _ in known]), stored.dtype)
    bias: Constant | Refusal | None = None
    if any(added is not None for *_, added in known):
        parts = [np.zeros(outputs) if added is None else added.exact() for *_, added in known]
        bias = round_vector(np.concatenate(parts), stored.dtype)
    if isinstance(weight, Refusal) or isinstance(bias, Refusal):
        return None
    whole = Form(weight.shape, form.groups * len(layers), form.window)
    edit = Replace(concat, Conv(whole.groups, 1, whole.window), (data, weight, bias))
    return None if view.check(edit) is not None else Merge((split, *layers), concat, PIECES, (edit,))


def _alone(value: Value | None, reader: Node) -> Node | None:
    """The convolution along the second axis that gives a value to this reader alone."""
    node = None if value is None else value.producer
    if value is None or node is None or value.observed or node.scope != reader.scope:
        return None
    alone = len(value.readers) == 1 and isinstance(node.op, Conv) and node.op.channel_axis == 1
    return node if alone and "bypass" not in node.locks else None


def _split_of(layers: list[Node]) -> Node | None:
    """The split of which these read all pieces, in order and alone."""
    pieces = [layer.input(DATA) for layer in layers]
    split = None if pieces[0] is None else pieces[0].producer
    if split is None or split.op != Split(1) or split.scope != layers[0].scope:
        return None
    whole = len(pieces) == len(split.outputs) and all(
        piece is output and len(output.readers) == 1 and not output.observed
        for piece, output in zip(pieces, split.outputs, strict=True)
    )
    return split if whole else None
