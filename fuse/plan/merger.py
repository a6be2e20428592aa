"""Sums of linear branches over one value become one convolution.

Of two branches of one sum (:mod:`convbn.fuse.plan.branches`) a convolution takes in the other one's numbers
(:mod:`convbn.fuse.algebra.kernels`), and the operator that added the other one goes. That is done to pairs until no
pair is left that pays (:mod:`convbn.fuse.plan.cost`).

The numbers are computed while planning, from the model as it still is: once edits are made, the initializers that they
come from may have been overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from convbn.fuse.algebra.kernels import add_into, union
from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.rule import constant_at
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.branches import (
    AffineOf,
    Branch,
    Leaf,
    branch_beside,
    conv_branch,
    is_inner,
    is_sum,
    leaves_of,
)
from convbn.fuse.plan.cost import pays
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Constant, Node
from convbn.fuse.view.edits import Bypass, Edit, Replace
from convbn.fuse.view.op import WEIGHT
from convbn.fuse.view.view import View

__all__ = ["Merge", "merge_branches"]


@dataclass(frozen=True, slots=True)
class Merge:
    """Nodes that become part of a convolution.

    Attributes:
        gone: the nodes that go; the operator that added is the first.
        into: the convolution that stays.
        rule: one of :data:`convbn.fuse.operators.registry.MERGES`.
        edits: already applied to the view.
    """

    gone: tuple[Node, ...]
    into: Node
    rule: str
    edits: tuple[Edit, ...]


def merge_branches(view: View, options: FuseOptions, affine_of: AffineOf) -> Iterator[Merge]:
    """Make every merge that pays, one by one; the view is brought up to date before each is given out.

    Args:
        view: the dataflow of a graph; it is changed.
        options: which rules may be used.
        affine_of: says which per-channel map a node is.
    """
    progress = True
    while progress:
        progress = False
        gone: set[int] = set()
        for node in [node for node in view.nodes if is_sum(node) and not is_inner(node)]:
            while id(node) not in gone and (merge := _in_tree(view, node, options, affine_of)) is not None:
                gone.update(map(id, merge.gone))
                progress = True
                yield merge


def _in_tree(view: View, root: Node, options: FuseOptions, affine_of: AffineOf) -> Merge | None:
    """The first merge of two leaves of a sum, applied to the view."""
    leaves = list(leaves_of(root))
    convs = [branch for leaf in leaves if (branch := conv_branch(leaf)) is not None]
    for index, host in enumerate(convs):
        later = (branch for branch in convs[index + 1 :] if branch.source is host.source)
        others = (
            branch
            for leaf in leaves
            if leaf is not host.leaf and (branch := branch_beside(leaf, host, affine_of)) is not None
        )
        for other in (*later, *others):
            if not options.allows(other.rule):
                continue
            merge = _merge(view, host, other)
            if merge is None and other.node is not None and isinstance(other.node.op, Conv):
                merge = _merge(view, other, host)
            if merge is not None:
                return merge
    return None


def _merge(view: View, host: Branch, other: Branch) -> Merge | None:
    """``host`` takes in ``other``, if that is exact, pays and can be edited so."""
    signs = _signs(host.leaf, other.leaf)
    form = union(host.form, other.form)
    if signs is None or form is None or host.node is None or not pays(form, (host.cost, other.cost)):
        return None
    if other.node is not None and "bypass" in other.node.locks:
        return None
    weight = cast(Constant, constant_at(host.node, WEIGHT, "weight"))
    total = np.zeros(form.shape)
    biases = []
    for branch, sign in zip((host, other), signs, strict=True):
        add_into(total, form, branch.weight(), branch.form, sign)
        bias = branch.bias()
        if bias is not None:
            biases.append(sign * bias)
    merged = round_sum(total, weight.dtype)
    shift = round_vector(np.sum(biases, axis=0), weight.dtype) if biases else None
    if isinstance(merged, Refusal) or isinstance(shift, Refusal):
        return None
    op = Conv(form.groups, host.channel_axis, form.window)
    edits = (
        Replace(host.node, op, (host.source, merged, shift)),
        Bypass(other.leaf.parent, 1 - other.leaf.slot),
    )
    if any(view.check(edit) is not None for edit in edits):
        return None
    for edit in edits:
        view.apply(edit)
    gone = (other.leaf.parent,) if other.node is None else (other.leaf.parent, other.node)
    return Merge(gone, host.node, other.rule, edits)


def _signs(host: Leaf, other: Leaf) -> tuple[float, float] | None:
    """With which sign each counts once ``other`` is gone; None where its parent cannot go.

    The parent gives way to its other operand. What is subtracted from cannot go like that, unless the
    other operand is the host, which then takes over its own sign, too.
    """
    if host.parent is other.parent:
        minus = isinstance(host.parent.op, Elementwise) and host.parent.op.operation is Arithmetic.SUBTRACT
        signs = (1.0, -1.0 if minus else 1.0)
        return signs[host.slot], signs[other.slot]
    op = other.parent.op
    if isinstance(op, Elementwise) and op.operation is Arithmetic.SUBTRACT and other.slot == 0:
        return None
    return 1.0, host.sign * other.sign
