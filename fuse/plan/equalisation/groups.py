"""Which channels of a model can be scaled, and by which layers that is made up for.

A scale is put on the channels that a linear layer gives, and taken off again by whatever reads them. How far that
goes is not looked up in a table of patterns: a trial scale is moved by the rules of the fold, through ReLUs, pools,
sums of a residual stream, concatenations. What becomes of the weights then says which input channel of which layer
takes which scale. Pairs of layers, depthwise triples and whole residual streams all come out of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.conv_transpose import ConvTranspose
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.draft import Draft
from convbn.fuse.plan.drafting.changes import UnfitError
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import SetConstant
from convbn.fuse.view.op import WEIGHT
from convbn.fuse.view.view import View

__all__ = ["LINEAR", "Group", "as_matrix", "free_groups", "moved_by"]

LINEAR = (Conv, ConvTranspose, Linear)


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that can be scaled.

    Attributes:
        producer: a layer that gives them.
        axis: where they lie in its output.
        channels: how many there are.
        consumers: each layer whose weight takes the inverse, with the channel that each of its input channels is,
            −1 for none of them.
        values: what is scaled, by name.
    """

    producer: Node
    axis: int
    channels: int
    consumers: tuple[tuple[Node, NDArray[np.intp]], ...]
    values: tuple[str, ...]


def as_matrix(node: Node, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight of a linear layer as ``[groups, O/groups, I/groups, K]``; input channels run over groups first."""
    if isinstance(node.op, Conv):
        outputs, inputs = weight.shape[:2]
        return weight.reshape(node.op.groups, outputs // node.op.groups, inputs, -1)
    if isinstance(node.op, ConvTranspose):
        inputs, outputs = weight.shape[:2]
        return weight.reshape(node.op.groups, inputs // node.op.groups, outputs, -1).swapaxes(1, 2)
    return (weight if cast(Linear, node.op).output_axis == 0 else weight.T)[None, :, :, None]


def moved_by(view: View, node: Node, axis: int, scale: NDArray[np.float64]) -> Draft | None:
    """The edits that put a scale on what a layer gives and take it off again; None where the rules find no way."""
    value = node.outputs[0]
    mover = Node(f"a scale behind {node.name}", BatchNorm(0.0, channel_axis=axis), [value], [], node.scope)
    draft, affine, rule = Draft(view, FuseOptions(), mover, {}), Affine.scale_by(scale), rule_for(node.op)
    if rule is None or rule.backward is None or draft.unnoticed(value, affine, axis) is not None:
        return None
    return draft if rule.backward(draft, node, value, affine, axis) is None else None


def free_groups(view: View) -> Iterator[Group]:
    """All of them, each once, in running order."""
    seen = set[str]()
    for node in view.nodes:
        value = node.outputs[0] if node.outputs else None
        if not isinstance(node.op, LINEAR) or value is None or value.name in seen:
            continue
        axis = node.op.output_axis_of(value.rank)
        channels = None if axis is None or value.shape is None else value.shape[axis]
        if axis is None or not channels:
            continue
        group = _group(view, node, axis, channels)
        if group is not None:
            seen.update(group.values)
            yield group


def _group(view: View, node: Node, axis: int, channels: int) -> Group | None:
    trial = 1 + np.arange(1, channels + 1) / (2 * channels)
    draft = moved_by(view, node, axis, trial)
    if draft is None:
        return None
    try:
        edits = draft.edits
    except UnfitError:
        return None
    consumers = []
    for edit in edits:
        if not isinstance(edit, SetConstant) or edit.slot != WEIGHT or not isinstance(edit.node.op, LINEAR):
            continue
        ratios = _ratios(edit)
        if ratios is None:
            return None
        if (ratios < 1).any():
            nearest = np.abs(np.subtract.outer(1 / ratios, trial)).argmin(axis=1)
            consumers.append((edit.node, np.where(ratios < 1, nearest, -1)))
    return Group(node, axis, channels, tuple(consumers), draft.moved) if consumers else None


def _ratios(edit: SetConstant) -> NDArray[np.float64] | None:
    """What each input channel of a linear layer's weight is divided by, as a factor below 1.

    None where the layer gives channels of the group as well as reading them: then no factor belongs to a channel.
    """
    old = cast(Value, edit.node.input(WEIGHT)).constant
    before, after = (
        _columns(edit.node, cast(Constant, constant).exact()) for constant in (old, edit.constant)
    )
    ratios: NDArray[np.float64] = np.divide(after, before, out=np.ones_like(before), where=before != 0)
    smallest: NDArray[np.float64] = ratios.min(axis=1)
    uniform = np.isclose(ratios, smallest[:, None], rtol=1e-9, atol=0) | (before == 0)
    return smallest if uniform.all() or (smallest >= 1).all() else None


def _columns(node: Node, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """A weight as ``[I, everything that a channel is multiplied with]``."""
    groups, rows, inputs, taps = (matrix := as_matrix(node, weight)).shape
    return matrix.transpose(0, 2, 1, 3).reshape(groups * inputs, rows * taps)
