"""Operators over constants alone: what they give is a constant, computed in float64 and rounded once.

Weight standardisation is written so: a BatchNorm, its statistics and a few products, all over a convolution's weight.
Nothing is computed before somebody asks for the numbers, and chains that would take long are no constants, so that no
file can make us compute much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from convbn.fuse.algebra.rounding import stored_as
from convbn.fuse.operators.registry import evaluator_of
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.op import Op

__all__ = ["evaluated"]

_LARGEST = 1 << 24
"""Elements of a result."""

_MOST_WORK = 1 << 27
"""Elements computed on the way to it, counted anew for every use of an intermediate result."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def evaluated(op: Op, inputs: Sequence[Value | None]) -> Constant | None:
    """The constant that ``op`` gives for constant inputs; None if it is none, or none that may be computed.

    A number that is not finite is no obstacle here: whoever stores the result has to look.
    """
    known = [None if value is None else value.constant for value in inputs]
    if not known or known[0] is None or any(v is not None and v.constant is None for v in inputs):
        return None
    evaluate = evaluator_of(op)
    found = None if evaluate is None else evaluate(op, known)
    if found is None:
        return None
    dtype = next((c.dtype for c in known if c is not None and c.dtype.name in _FLOATS), None)
    if dtype is None:
        return None
    shape, exact = found
    work = math.prod(shape) + sum(max(math.prod(c.shape), c.work) for c in known if c is not None)
    if math.prod(shape) > _LARGEST or work > _MOST_WORK:
        return None
    return Constant(
        shape,
        lambda: stored_as(exact(), dtype),
        exact=exact,
        dtype=dtype,
        work=work,
        sources=[constant for constant in known if constant is not None],
    )
