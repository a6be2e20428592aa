"""Functions and norms over constants: what a scale, a shift or a weight is computed from before the model runs.

Frozen BatchNorms compute ``γ/√(σ² + ε)``, weight norm divides by a norm, spectral norm by ``uᵀWv``. No map passes
these; over constants they are constants (:mod:`convbn.fuse.operators.evaluation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.view.dataflow import Constant
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "Function"]

Array = NDArray[np.float64]

_UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs,
    "Exp": np.exp,
    "Log": np.log,
    "Reciprocal": np.reciprocal,
    "Sqrt": np.sqrt,
}

_REDUCED: dict[str, Callable[..., Array]] = {
    "ReduceL1": lambda x, **where: np.abs(x).sum(**where),
    "ReduceL2": lambda x, **where: np.sqrt((x * x).sum(**where)),
    "ReduceSum": lambda x, **where: x.sum(**where),
    "ReduceSumSquare": lambda x, **where: (x * x).sum(**where),
}


@dataclass(frozen=True, slots=True)
class Function(Labelled):
    """A function of each element, a power, or a norm over ``axes``. Slots: data, exponent of a power."""

    axes: tuple[int, ...] = ()
    keepdims: bool = True


def evaluated(op: Function, known: Sequence[Constant | None]) -> Evaluated | None:
    """Over constants."""
    data, *further = known
    if data is None or data.dtype.kind in "iub":
        return None
    if op.label == "Pow":
        exponent = further[0] if further else None
        if exponent is None:
            return None
        try:
            shape = np.broadcast_shapes(data.shape, exponent.shape)
        except ValueError:
            return None
        return shape, lambda: _quietly(np.power, data.exact(), exponent.exact())
    if op.label in _UNARY:
        return data.shape, lambda: _quietly(_UNARY[op.label], data.exact())
    axes = op.axes or tuple(range(len(data.shape)))
    shape = tuple(1 if i in axes else n for i, n in enumerate(data.shape) if op.keepdims or i not in axes)
    return shape, lambda: _quietly(_REDUCED[op.label], data.exact(), axis=axes, keepdims=op.keepdims)


def _quietly(function: Callable[..., Array], *operands: Array, **where: Any) -> Array:
    """What is not finite is for whoever stores it to see."""
    with np.errstate(all="ignore"):
        return np.asarray(function(*operands, **where))


def from_onnx(call: OnnxCall) -> Op | None:
    """Functions of one input, and Pow, of a constant."""
    data = call.input(DATA)
    return None if data is None or data.constant is None else Function(call.operator)


def reduced_from_onnx(call: OnnxCall) -> Op | None:
    """Norms and sums over known axes of a constant, or over all of them."""
    data = call.input(DATA)
    if data is None or data.constant is None:
        return None
    named = "axes" in call.attributes or call.input(1) is not None
    axes, rank = call.integers(1, "axes"), len(data.constant.shape)
    if (named and axes is None) or call.attributes.get("noop_with_empty_axes", 0):
        return None
    if not all(-rank <= axis < rank for axis in axes or ()):
        return None
    keepdims = bool(call.attributes.get("keepdims", 1))
    return Function(call.operator, tuple(sorted({axis % rank for axis in axes or ()})), keepdims)


OPERATOR = Operator(
    Function,
    None,
    evaluated,
    {**dict.fromkeys((*_UNARY, "Pow"), from_onnx), **dict.fromkeys(_REDUCED, reduced_from_onnx)},
)
"""Has no rule: no map passes."""
