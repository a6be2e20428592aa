"""When a merge pays: it must cost neither more arithmetic nor more memory traffic than its parts.

Counted at one position of the output, since the parts and the merged layer all have the same positions, whether their
number is known or not:

* a convolution takes as many multiply-adds as its weight has elements, ``O·(C/groups)·∏k``;
* a per-channel map takes one a channel; so is an average over windows counted, which adds more but has no weights;
* the sum takes one a channel, and that is all that the identity costs.

The merge is made if the merged weight has no more elements than that together. So a dense 3×3 takes in a 1×1, a
depthwise kernel or the identity beside it, and a depthwise 3×3 a depthwise 1×1; a depthwise kernel beside a dense 1×1
stays, because their union is dense and of the larger size.

Of two layers in a row the first has at least as many positions as the second where the second has no padding, and its
output is written and read once less. Then the composed layer is made if it has no more multiply-adds than both
together; with padding, no more than the second alone.

Memory follows. A weight element is one multiply-add at each position, so the weights can grow by no more than 2·O
elements: those that the sum and an average, which have no weights, were counted for. What no longer moves at each of
the P positions is the output of the branch that stays, written and read once more, and the other summand, read: 3·O·P
elements.

Fewer operations are not always less time: ``convbn bench`` measures it, and ``--skip`` leaves out what does not help.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from convbn.fuse.algebra.kernels import Form

__all__ = ["chain_pays", "multiply_adds", "pays"]


def multiply_adds(form: Form) -> int:
    """Multiply-adds of a convolution of this form, per output position."""
    return math.prod(form.shape)


def pays(merged: Form, parts: Sequence[int]) -> bool:
    """Whether the merged layer costs no more than its parts and their sum.

    Args:
        merged: the form of the merged layer.
        parts: multiply-adds of each part, per output position; 0 for the identity.
    """
    return multiply_adds(merged) <= sum(parts) + merged.shape[0]


def chain_pays(composed: Form, first: Form, second: Form) -> bool:
    """Whether one layer costs no more than two in a row.

    Args:
        composed: the form of the one.
        first: the form of the layer that reads the data.
        second: the form of the layer behind it.
    """
    before = multiply_adds(second) + (0 if second.window.padded else multiply_adds(first))
    return multiply_adds(composed) <= before
