"""The ways to remove an affine map's node: backward, forward, apart, compensated, to an addition.

1. *Backward* as a whole, into what produces its input. Where a product would gain an addition for it, ways 2 and 3 are
   tried first.
2. *Forward* as a whole, into everything that reads its output.
3. *Apart*: sign and shift backward and the magnitude forward, ``s·x + t = |s|·(±x + t/|s|)``, the way off a residual
   stream, where signs and shifts are a matter of bookkeeping and only a positive scale passes the activation; or the
   scale backward and the shift forward.
4. *Compensated*: backward as a whole, and what else reads the values on its way takes the inverse, ``(x − t)/s``. Exact
   where t/s is of the size of the values, the bound of way 3: of the BatchNorms that read one stream, one can go.
5. *To an addition*: the scale backward, the shift stays as an ``Add``, where a layer has no place for a bias. Not on
   images: there an addition costs what the BatchNorm did, and in runtimes with blocked layouts more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.broadcast import along
from convbn.fuse.algebra.rounding import round_vector
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.cast import Cast
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.registry import WAYS
from convbn.fuse.operators.rule import constant_at
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.attempts import Footprint
from convbn.fuse.plan.draft import Draft
from convbn.fuse.plan.maps import data_slot
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import Bypass, Edit, Replace, SetConstant
from convbn.fuse.view.view import View

__all__ = ["Attempt", "Fold", "apart", "backward", "compensated", "forward", "to_add"]

_FARTHEST_SHIFT = 16.0
"""Standard deviations that a shift may move a stream by: more would cost it digits."""

_LARGEST_RANK_OF_AN_ADDITION = 3
"""Images (rank 4) onnxruntime keeps in blocks, in which a BatchNorm is a depthwise convolution and an Add is not."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A way that works.

    Attributes:
        into: the nodes that take the map.
        rule: its name.
        edits: what is to be changed.
        moved: the values that change.
        gains: whether the model gains an addition for a constant that a layer has no place for.
    """

    into: tuple[str, ...]
    rule: str
    edits: tuple[Edit, ...]
    moved: tuple[str, ...] = ()
    gains: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """What every way of one map starts from.

    Attributes:
        view: not changed.
        node: the map.
        options: which rules may be used.
        seen: takes up every node that is looked at.
        eager, together: see :class:`convbn.fuse.plan.draft.Draft`.
    """

    view: View
    node: Node
    options: FuseOptions
    seen: Footprint
    eager: bool = False
    together: bool = False

    def draft(self, *, whole: bool = False) -> Draft:
        """A new one."""
        return Draft(
            self.view,
            self.options,
            self.node,
            self.seen,
            eager=self.eager,
            whole=whole,
            together=self.together,
        )

    def finished(self, draft: Draft, rule: str) -> Fold | Refusal:
        """The edits of a way that works, with the node itself taken out."""
        edit = Bypass(self.node, data_slot(self.node))
        refusal = self.view.check(edit, together=self.together)
        if refusal is not None:
            return refusal
        return Fold(draft.into, rule, (*draft.edits, edit), draft.moved, draft.adds)


def backward(attempt: Attempt, source: Value, affine: Affine, axis: int) -> Fold | Refusal:
    """Way 1: what produces the input takes the map."""
    draft = attempt.draft()
    refusal = draft.produce(source, affine, axis, reader=attempt.node)
    if refusal is not None:
        return refusal
    another = _without_addition(attempt, source, affine, axis) if draft.adds else None
    return another or attempt.finished(draft, draft.rule or "batchnorm-backward")


def _without_addition(attempt: Attempt, source: Value, affine: Affine, axis: int) -> Fold | None:
    """Way 2 or 3 for a map that would leave an addition; None where they cannot, or leave one, too."""
    onward = forward(attempt, affine, axis)
    found = onward if isinstance(onward, Fold) else apart(attempt, source, affine, axis)
    return None if found is None or found.gains else found


def forward(attempt: Attempt, affine: Affine, axis: int) -> Fold | Refusal:
    """Way 2: everything that reads the output takes the map."""
    if not attempt.options.allows(WAYS[0]):
        return Refusal(Reason.SKIPPED, f"the rule {WAYS[0]} is switched off")
    draft = attempt.draft()
    refusal = draft.consume(attempt.node.outputs[0], affine, axis)
    return refusal if refusal is not None else attempt.finished(draft, WAYS[0])


def apart(attempt: Attempt, source: Value, affine: Affine, axis: int) -> Fold | None:
    """Way 3: shift and scale part; None where they cannot."""
    node = attempt.node
    magnitude = np.abs(affine.scale)
    inverse = Affine.scale_by(magnitude).inverse()
    if inverse is None or not attempt.options.allows(WAYS[1]):
        return None
    shift = affine.shift * inverse.scale
    parts = [(Affine.scale_by(affine.scale), Affine.shift_by(affine.shift))]
    if _near(node, shift):
        parts.insert(0, (Affine(np.sign(affine.scale), shift), Affine.scale_by(magnitude)))
    for back, onward in parts:
        draft = attempt.draft()
        refusal = draft.consume(node.outputs[0], onward, axis)
        if refusal is None:
            refusal = draft.produce(source, back, axis, reader=node)
        if refusal is None and isinstance(done := attempt.finished(draft, WAYS[1]), Fold):
            return done
    return None


def compensated(attempt: Attempt, source: Value, affine: Affine, axis: int) -> Fold | None:
    """Way 4: as way 1, and whoever else reads what moves takes the inverse; None where they cannot."""
    inverse = affine.inverse()
    allowed = attempt.options.allows(WAYS[1])
    if inverse is None or not allowed or not _near(attempt.node, inverse.shift):
        return None
    draft = attempt.draft(whole=True)
    if draft.produce(source, affine, axis, reader=attempt.node) is not None:
        return None
    done = attempt.finished(draft, draft.rule or "batchnorm-backward")
    return done if isinstance(done, Fold) else None


def _near(node: Node, shift: np.ndarray) -> bool:
    """Whether the shift is of the size of what it is added to, by the BatchNorm's own statistics."""
    # The map was made of them, so they are known.
    mean, variance = (cast(Constant, constant_at(node, slot, "statistics")) for slot in (3, 4))
    size = np.abs(mean.exact()) + np.sqrt(np.abs(variance.exact()))
    return bool((np.abs(shift) <= _FARTHEST_SHIFT * size).all())


def to_add(attempt: Attempt, source: Value, affine: Affine, axis: int) -> Fold | None:
    """Way 5: the scale goes, the shift stays as an addition in the node's place; None where it cannot."""
    node = attempt.node
    rank = source.rank
    if (
        not attempt.view.additions
        or rank is None
        or rank > _LARGEST_RANK_OF_AN_ADDITION
        or not attempt.options.allows(WAYS[2])
    ):
        return None
    draft = attempt.draft()
    if draft.produce(source, Affine.scale_by(affine.scale), axis, reader=node) is not None:
        return None
    # A BatchNorm's own parameters may be of another type than its data (float32 beside float16).
    settings = (edit for edit in draft.edits if isinstance(edit, SetConstant))
    changed = (edit.constant.dtype for edit in settings if not isinstance(edit.node.op, BatchNorm))
    types = {dtype for dtype in changed if dtype.kind not in "iu"}
    if len(types) != 1 or any(isinstance(seen.op, Cast) for seen in attempt.seen.values()):
        return None  # the type of an addition does not follow from the layers
    constant = round_vector(along(affine.shift, axis, rank), types.pop())
    if isinstance(constant, Refusal):
        return None
    edit = Replace(node, Elementwise(Arithmetic.ADD), (source, constant))
    if attempt.view.check(edit) is not None:
        return None
    return Fold(draft.into, WAYS[2], (*draft.edits, edit), draft.moved)
