"""Sums of linear branches over one value become one convolution.

Of two branches of one sum (:mod:`convbn.fuse.plan.merging.branches`) a convolution takes in the other one's numbers
(:mod:`convbn.fuse.algebra.kernels`), and the operator that added the other one goes. That is done to pairs until no
pair is left that pays (:mod:`convbn.fuse.plan.merging.cost`).

The numbers are computed while planning, from the model as it still is: once edits are made, the initializers that they
come from may have been overwritten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np

from convbn.fuse.algebra.kernels import add_into, union
from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.rule import constant_at
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.merging.branches import (
    AffineOf,
    Branch,
    Leaf,
    branch_beside,
    conv_branch,
    is_inner,
    is_sum,
    leaves_of,
)
from convbn.fuse.plan.merging.cost import pays
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
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
            branches = _Branches(view, node, options, affine_of)
            while id(node) not in gone and (merge := branches.merge()) is not None:
                gone.update(map(id, merge.gone))
                progress = True
                yield merge


class _Branches:
    """The leaves of one sum, from left to right, kept true from merge to merge: a sum may have thousands."""

    def __init__(self, view: View, root: Node, options: FuseOptions, affine_of: AffineOf) -> None:
        self._view = view
        self._root = root
        self._options = options
        self._affine_of = cache(affine_of)
        self._leaves = dict(enumerate(leaves_of(root)))
        self._places = {(id(leaf.parent), leaf.slot): i for i, leaf in self._leaves.items()}
        self._convs = {i: conv for i, leaf in self._leaves.items() if (conv := conv_branch(leaf)) is not None}
        self._beside: defaultdict[int, dict[int, None]] = defaultdict(dict)
        for i in self._leaves:
            for value in self._may_read(i):
                self._beside[id(value)][i] = None

    def _may_read(self, index: int) -> list[Value | None]:
        """What a leaf may be a branch of."""
        if index in self._convs:
            return [self._convs[index].source]
        value = self._leaves[index].value
        return [value] if value.producer is None else [value, *value.producer.inputs]

    def merge(self) -> Merge | None:
        """The first merge of two of them, applied to the view."""
        for index, host in self._convs.items():
            for other_index, other in self._others(index, host):
                if not self._options.allows(other.rule):
                    continue
                merge = _merge(self._view, host, other)
                kept, gone = index, other_index
                if merge is None and other_index in self._convs:
                    merge = _merge(self._view, other, host)
                    kept, gone = gone, kept
                if merge is not None:
                    self._follow(kept, gone)
                    return merge
        return None

    def _others(self, index: int, host: Branch) -> Iterator[tuple[int, Branch]]:
        """What reads the same: convolutions behind ``host`` in the sum, then leaves of other kinds."""
        beside = self._beside[id(host.source)]
        yield from ((i, self._convs[i]) for i in beside if i > index and i in self._convs)
        for i in beside:
            if i not in self._convs:
                branch = branch_beside(self._leaves[i], host, self._affine_of)
                if branch is not None:
                    yield i, branch

    def _follow(self, kept: int, gone: int) -> None:
        """The parent of the leaf that is gone has given way to its other operand."""
        for value in self._may_read(gone):
            self._beside[id(value)].pop(gone, None)
        self._convs.pop(gone, None)
        leaf = self._leaves.pop(gone)
        sibling = self._places.get((id(leaf.parent), 1 - leaf.slot))
        if leaf.parent is not self._root and sibling is not None:
            (outer,) = leaf.parent.outputs[0].readers
            sign = -leaf.sign if leaf.slot == 1 and _subtracts(leaf.parent) else leaf.sign
            moved = Leaf(outer.node, outer.slot, self._leaves[sibling].value, sign)
            self._leaves[sibling] = moved
            self._places[id(outer.node), outer.slot] = sibling
        for index in (kept, sibling):
            if index is not None and index in self._convs:
                branch = conv_branch(self._leaves[index])
                if branch is None:
                    del self._convs[index]
                else:
                    self._convs[index] = branch


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
        signs = (1.0, -1.0 if _subtracts(host.parent) else 1.0)
        return signs[host.slot], signs[other.slot]
    if _subtracts(other.parent) and other.slot == 0:
        return None
    return 1.0, host.sign * other.sign


def _subtracts(node: Node) -> bool:
    return isinstance(node.op, Elementwise) and node.op.operation is Arithmetic.SUBTRACT
