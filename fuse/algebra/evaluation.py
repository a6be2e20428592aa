"""Operators over constants alone: what they give is a constant, computed in float64 and rounded once.

Weight standardisation is written so: a BatchNorm, its statistics and a few products, all over a convolution's weight.
Nothing is computed before somebody asks for the numbers, and chains that would take long are no constants, so that no
file can make us compute much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine, from_batchnorm
from convbn.fuse.algebra.rounding import stored_as
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.ops import Arithmetic, BatchNorm, Elementwise, Mean, Op

__all__ = ["evaluated"]

_LARGEST = 1 << 24
"""Elements of a result."""

_MOST_WORK = 1 << 27
"""Elements computed on the way to it, counted anew for every use of an intermediate result."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")

_OPERATIONS: dict[Arithmetic, Callable[..., NDArray[np.float64]]] = {
    Arithmetic.ADD: np.add,
    Arithmetic.SUBTRACT: np.subtract,
    Arithmetic.MULTIPLY: np.multiply,
    Arithmetic.DIVIDE: np.divide,
}

Exact = Callable[[], NDArray[np.float64]]


def evaluated(op: Op, inputs: Sequence[Value | None]) -> Constant | None:
    """The constant that ``op`` gives for constant inputs; None if it is none, or none that may be computed.

    A number that is not finite is no obstacle here: whoever stores the result has to look.
    """
    known = [None if value is None else value.constant for value in inputs]
    if not known or known[0] is None or any(v is not None and v.constant is None for v in inputs):
        return None
    data = known[0]
    found: tuple[tuple[int, ...], Exact] | None = None
    if isinstance(op, BatchNorm):
        found = _batchnorm(op, known)
    elif isinstance(op, Elementwise):
        found = _elementwise(op, known)
    elif isinstance(op, Mean):
        found = _mean(op, data)
    if found is None or data.dtype.name not in _FLOATS:
        return None
    shape, exact = found
    work = math.prod(shape) + sum(max(math.prod(c.shape), c.work) for c in known if c is not None)
    if math.prod(shape) > _LARGEST or work > _MOST_WORK:
        return None
    dtype = data.dtype
    return Constant(shape, lambda: stored_as(exact(), dtype), exact=exact, dtype=dtype, work=work)


def _batchnorm(op: BatchNorm, known: Sequence[Constant | None]) -> tuple[tuple[int, ...], Exact] | None:
    data, gamma, beta, mean, variance = [*known, None, None, None, None][:5]
    if op.training or data is None or mean is None or variance is None:
        return None
    axis, rank = op.channel_axis, len(data.shape)
    if axis >= rank or mean.shape != data.shape[axis : axis + 1]:
        return None

    def exact() -> NDArray[np.float64]:
        affine = from_batchnorm(
            None if gamma is None else gamma.exact(),
            None if beta is None else beta.exact(),
            mean.exact(),
            variance.exact(),
            op.epsilon,
        )
        if not isinstance(affine, Affine):
            return np.full(
                data.shape, np.nan
            )  # what the runtime makes of such statistics is no constant of ours
        shape = [-1 if i == axis else 1 for i in range(rank)]
        return data.exact() * affine.scale.reshape(shape) + affine.shift.reshape(shape)

    return data.shape, exact


def _elementwise(op: Elementwise, known: Sequence[Constant | None]) -> tuple[tuple[int, ...], Exact] | None:
    left, right = [*known, None][:2]
    if left is None or right is None or left.dtype != right.dtype:
        return None
    try:
        shape = np.broadcast_shapes(left.shape, right.shape)
    except ValueError:
        return None

    def exact() -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            return _OPERATIONS[op.operation](left.exact(), right.exact())

    return shape, exact


def _mean(op: Mean, data: Constant) -> tuple[tuple[int, ...], Exact] | None:
    if len(data.shape) != op.rank or not all(data.shape[axis] for axis in op.axes):
        return None
    kept = set(range(op.rank)) - set(op.axes)
    shape = tuple(n if i in kept else 1 for i, n in enumerate(data.shape) if i in kept or op.keepdims)
    return shape, lambda: data.exact().mean(axis=op.axes, keepdims=op.keepdims)
