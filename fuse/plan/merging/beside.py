"""A BatchNorm beside a convolution of the same data goes into it and leaves the identity, without new structure.

``conv(x) + (s·x + t) = conv'(x) + x``: on the tap that lies over the output's own position, conv' has ``s − 1`` more
from each channel to itself, and its bias has t more. That needs such a tap: stride 1 and padding that keeps the size
(:mod:`convbn.fuse.algebra.kernels`). So RepVGG, MobileOne and their kin lose the BatchNorm of their identity branch
in a module; a graph takes the identity in, too (:mod:`convbn.fuse.plan.merging.merger`).

The difference costs digits where x is much larger than what the BatchNorm makes of it: ``s·x`` is then the small rest
of x and ``(s − 1)·x``. The BatchNorm's own statistics say how large x is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.kernels import add_into, union
from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.registry import WAYS
from convbn.fuse.operators.rule import constant_at
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.merging.branches import (
    AffineOf,
    Branch,
    Leaf,
    adds,
    branch_beside,
    conv_branch,
    is_inner,
    leaves_of,
)
from convbn.fuse.plan.merging.merger import Merge
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Constant, Node
from convbn.fuse.view.edits import Bypass, Edit, SetConstant
from convbn.fuse.view.op import BIAS, WEIGHT
from convbn.fuse.view.view import View

__all__ = ["merge_beside"]

_LARGEST_RATIO = 1024.0
"""By which x may be larger than the result; ten bits of the twenty-four of float32."""


def merge_beside(view: View, options: FuseOptions, affine_of: AffineOf) -> Iterator[Merge]:
    """Make every such fold, one by one; the view is brought up to date before each is given out.

    Args:
        view: the dataflow of a module; it is changed.
        options: which rules may be used.
        affine_of: says which per-channel map a node is.
    """
    for node in view.batchnorms() if options.allows(WAYS[3]) else ():
        merge = _beside(view, node, affine_of)
        if merge is not None:
            for edit in merge.edits:
                view.apply(edit)
            yield merge


def _beside(view: View, node: Node, affine_of: AffineOf) -> Merge | None:
    root = _sum_of(node)
    leaves = [] if root is None else list(leaves_of(root, adds))
    own = next((leaf for leaf in leaves if leaf.value is node.outputs[0]), None)
    if own is None or not _near(node, affine_of):
        return None
    for host in (conv_branch(leaf) for leaf in leaves if leaf is not own):
        edits = None if host is None else _edits(host, own, affine_of)
        if host is None or host.node is None or edits is None:
            continue
        if all(view.check(edit) is None for edit in edits):
            return Merge((node,), host.node, WAYS[3], edits)
    return None


def _sum_of(node: Node) -> Node | None:
    """The whole sum that the node's output is a summand of."""
    output = node.outputs[0]
    if len(output.readers) != 1 or output.observed:
        return None
    root = output.readers[0].node
    while adds(root) and is_inner(root, adds):
        root = root.outputs[0].readers[0].node
    return root if adds(root) else None


def _edits(host: Branch, own: Leaf, affine_of: AffineOf) -> tuple[Edit, ...] | None:
    branch = branch_beside(own, host, affine_of)
    if branch is None or host.node is None or branch.node is None:
        return None
    form = union(host.form, branch.form)
    if form != host.form:
        return None
    stored = cast(Constant, constant_at(host.node, WEIGHT, "weight"))
    sign = host.leaf.sign * own.sign
    total = host.weight().copy()
    add_into(total, form, branch.weight() - 1, branch.form, sign)
    before, shift = host.bias(), cast(np.ndarray, branch.bias())
    weight = round_sum(total, stored.dtype)
    bias = round_vector(sign * shift if before is None else before + sign * shift, stored.dtype)
    if isinstance(weight, Refusal) or isinstance(bias, Refusal):
        return None
    return (
        SetConstant(host.node, WEIGHT, weight),
        SetConstant(host.node, BIAS, bias),
        Bypass(branch.node),
    )


def _near(node: Node, affine_of: AffineOf) -> bool:
    """Whether what the BatchNorm reads is not much larger than what it gives, by its own statistics."""
    found = affine_of(node)
    if isinstance(found, Refusal):
        return False
    affine: Affine = found[0]
    # The map was made of them, so they are known.
    mean, variance = (cast(Constant, constant_at(node, slot, "statistics")).exact() for slot in (3, 4))
    deviation = np.sqrt(np.abs(variance))
    given = np.abs(mean) + deviation
    made = np.abs(affine.scale * mean + affine.shift) + np.abs(affine.scale) * deviation
    return bool((given <= _LARGEST_RATIO * made.max(initial=0)).all())
