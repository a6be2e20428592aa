"""The ways an affine map ``(s, t)`` can leave its node.

1. *Backward* as a whole, into what produces its input.
2. *Forward* as a whole, into everything that reads its output.
3. *Apart*: sign and shift backward and the magnitude forward, ``s·x + t = |s|·(±x + t/|s|)``, the way off a residual
   stream, where signs and shifts are a matter of bookkeeping and only a positive scale passes the activation; or the
   scale backward and the shift forward.
4. *To an addition*: the scale backward, the shift stays as an ``Add``, where a layer has no place for a bias. Not on
   images: there an addition costs what the BatchNorm did, and in runtimes with blocked layouts more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_vector
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.attempts import Footprint
from convbn.fuse.plan.draft import Draft
from convbn.fuse.plan.maps import data_slot
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.rules.broadcast import along
from convbn.fuse.rules.rule import constant_at
from convbn.fuse.view.dataflow import Constant, Node, Value, View
from convbn.fuse.view.edits import Bypass, Edit, Replace
from convbn.fuse.view.ops import Arithmetic, BatchNorm, Elementwise

__all__ = ["WAYS", "Fold", "apart", "backward", "forward", "to_add"]

WAYS = ("batchnorm-forward", "batchnorm-apart", "batchnorm-to-add")
"""Names of the ways 2 to 4 in options and reports; way 1 is named after the rule that takes the map."""

_FARTHEST_SHIFT = 16.0
"""Standard deviations that a shift may move a stream by: more would cost it digits."""

_LARGEST_RANK_OF_AN_ADDITION = 3
"""Images (rank 4) onnxruntime keeps in blocks, in which a BatchNorm is a depthwise convolution and an Add is not."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A way that works: the nodes that take the map, the rule's name, the edits."""

    into: tuple[str, ...]
    rule: str
    edits: tuple[Edit, ...]


def backward(
    view: View, node: Node, source: Value, affine: Affine, axis: int, options: FuseOptions, seen: Footprint
) -> Fold | Refusal:
    """Way 1: what produces the input takes the map."""
    draft = Draft(view, options, node, seen)
    refusal = draft.produce(source, affine, axis, reader=node)
    return refusal if refusal is not None else _done(view, node, draft, draft.rule or "batchnorm-backward")


def forward(
    view: View, node: Node, affine: Affine, axis: int, options: FuseOptions, seen: Footprint
) -> Fold | Refusal:
    """Way 2: everything that reads the output takes the map."""
    if not options.allows(WAYS[0]):
        return Refusal(Reason.SKIPPED, f"the rule {WAYS[0]} is switched off")
    draft = Draft(view, options, node, seen)
    refusal = draft.consume(node.outputs[0], affine, axis)
    return refusal if refusal is not None else _done(view, node, draft, WAYS[0])


def apart(
    view: View, node: Node, source: Value, affine: Affine, axis: int, options: FuseOptions, seen: Footprint
) -> Fold | Refusal:
    """Way 3: shift and scale part."""
    if not options.allows(WAYS[1]):
        return Refusal(Reason.SKIPPED, f"the rule {WAYS[1]} is switched off")
    magnitude = np.abs(affine.scale)
    inverse = Affine.scale_by(magnitude).inverse()
    if inverse is None:
        return Refusal(Reason.ILL_CONDITIONED, "a scale of 0 leaves nothing for a shift to stand in for")
    shift = affine.shift * inverse.scale
    draft = Draft(view, options, node, seen)
    refusal = draft.consume(node.outputs[0], Affine.scale_by(magnitude), axis)
    if refusal is None and not _near(node, shift):
        refusal = Refusal(
            Reason.ILL_CONDITIONED,
            f"its shift is more than {_FARTHEST_SHIFT:.0f} standard deviations, which would cost the stream digits",
        )
    if refusal is None:
        refusal = draft.produce(source, Affine(np.sign(affine.scale), shift), axis, reader=node)
    if refusal is None:
        return _done(view, node, draft, WAYS[1])
    draft = Draft(view, options, node, seen)
    other = draft.consume(node.outputs[0], Affine.shift_by(affine.shift), axis)
    if other is None:
        other = draft.produce(source, Affine.scale_by(affine.scale), axis, reader=node)
    return refusal if other is not None else _done(view, node, draft, WAYS[1])


def _near(node: Node, shift: np.ndarray) -> bool:
    """Whether the shift is of the size of what it is added to, by the BatchNorm's own statistics."""
    mean, variance = constant_at(node, 3, "mean μ"), constant_at(node, 4, "variance σ²")
    if not isinstance(mean, Constant) or not isinstance(variance, Constant):
        return False
    size = np.abs(mean.exact()) + np.sqrt(np.abs(variance.exact()))
    return bool((np.abs(shift) <= _FARTHEST_SHIFT * size).all())


def to_add(
    view: View, node: Node, source: Value, affine: Affine, axis: int, options: FuseOptions, seen: Footprint
) -> Fold | Refusal:
    """Way 4: the scale goes, the shift stays as an addition in the node's place."""
    if not options.allows(WAYS[2]):
        return Refusal(Reason.SKIPPED, f"the rule {WAYS[2]} is switched off")
    rank = source.rank if source.rank is not None else node.outputs[0].rank
    if rank is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, "the rank of its input is not known")
    if rank > _LARGEST_RANK_OF_AN_ADDITION:
        return Refusal(Reason.NO_BIAS, "an addition in its place would cost as much")
    draft = Draft(view, options, node, seen)
    refusal = draft.produce(source, Affine.scale_by(affine.scale), axis, reader=node)
    if refusal is not None:
        return refusal
    # A BatchNorm's own parameters may be of another type than its data (float32 beside float16).
    changed = (edit.constant.dtype for edit in draft.edits if not isinstance(edit.node.op, BatchNorm))
    types = {dtype for dtype in changed if dtype.kind not in "iu"}
    if len(types) != 1:
        return Refusal(Reason.NO_BIAS, "the type of an addition in its place does not follow from the layers")
    constant = round_vector(along(affine.shift, axis, rank), types.pop())
    if isinstance(constant, Refusal):
        return constant
    edit = Replace(node, Elementwise(Arithmetic.ADD), (source, constant))
    refusal = view.check(edit)
    return refusal if refusal is not None else Fold(draft.into, WAYS[2], (*draft.edits, edit))


def _done(view: View, node: Node, draft: Draft, rule: str) -> Fold | Refusal:
    """The finished attempt with the node itself taken out."""
    edit = Bypass(node, data_slot(node))
    refusal = view.check(edit)
    if refusal is not None:
        return refusal
    return Fold(draft.into, rule, (*draft.edits, edit))
