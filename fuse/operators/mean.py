"""The mean over some axes: a map along another one passes, and its axis moves up by the axes that went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.operators.rule import Rearrangement, Rule, follow_backward, follow_forward
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "Mean", "reduced_shape"]


@dataclass(frozen=True, slots=True)
class Mean(Rearrangement):
    """The mean over ``axes`` of data of rank ``rank``."""

    axes: tuple[int, ...]
    rank: int
    keepdims: bool

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The same map along the axis that is left, or the one that it was."""
        kept = [i for i in range(self.rank) if i not in self.axes]
        places = list(range(self.rank)) if self.keepdims else kept
        if back:
            inner = places[axis] if axis < len(places) else None
            return None if inner is None or inner in self.axes else (affine, inner)
        return (affine, places.index(axis)) if axis in places and axis not in self.axes else None


def evaluated(op: Mean, known: Sequence[Constant | None]) -> Evaluated | None:
    """Over a constant."""
    data = known[0]
    if data is None or len(data.shape) != op.rank or not all(data.shape[axis] for axis in op.axes):
        return None
    kept = set(range(op.rank)) - set(op.axes)
    shape = tuple(n if i in kept else 1 for i, n in enumerate(data.shape) if i in kept or op.keepdims)
    return shape, lambda: data.exact().mean(axis=op.axes, keepdims=op.keepdims)


def from_onnx(call: OnnxCall) -> Op | None:
    """ReduceMean over known axes."""
    data, axes = call.input(DATA), call.integers(1, "axes")
    if data is None or not data.rank or not axes:
        return None
    keepdims = bool(call.attributes.get("keepdims", 1))
    return Mean(tuple(sorted(axis % data.rank for axis in axes)), data.rank, keepdims)


def from_aten(call: AtenCall) -> Mapped | None:
    """``mean`` over known axes, or all of them."""
    rank = call.rank()
    if not rank or call.given.get("dtype") is not None:
        return None
    axes = call.given.get("dim")
    axes = range(rank) if axes is None or axes == [] else axes if isinstance(axes, list | tuple) else [axes]
    if not all(type(axis) is int for axis in axes):
        return None
    keep = bool(call.given.get("keepdim", False))
    return call.unary(Mean(tuple(sorted(axis % rank for axis in axes)), rank, keep))


def reduced_shape(call: AtenCall) -> Shape | None:
    """Without the axes that are named in the call, or with 1 in their place."""
    shape, axes = call.shape(), call.given.get("dim")
    axes = axes if isinstance(axes, list | tuple) else [axes]
    if not shape or not all(isinstance(axis, int) for axis in axes):
        return None
    gone = {axis % len(shape) for axis in axes}
    if call.given.get("keepdim", False):
        return tuple(1 if i in gone else size for i, size in enumerate(shape))
    return tuple(size for i, size in enumerate(shape) if i not in gone)


OPERATOR = Operator(
    Mean,
    Rule("mean", Mean, follow_backward, follow_forward, through=True),
    evaluated,
    {"ReduceMean": from_onnx},
    (Aten(("mean",), from_aten, ("self", "dim", "keepdim"), shape=reduced_shape),),
)
