"""Reshaping: a map along one axis stays one as long as that axis is not torn apart.

With P elements in front of the axis, C along it and S behind it, element e has channel ``⌊e/S⌋ mod C``. On an axis of
the output with D indices and R elements behind each, e has index ``⌊e/R⌋ mod D``. So the channels come along that axis
as ``s.repeat(S/R)`` (every ``R/S`` of them as one, which must agree), from the start again after ``L = C·S/R`` indices:
D numbers say it all if these L repeat after ``gcd(D, L)`` already, as all do where L divides D. P may be unknown (the
batch). Where S is, an axis with as many elements in front of it has ``S/R = D/C``, since both sides have the same
elements. A dimension that is not known cancels against one of its name.

Backwards, where an axis was made of several, the map lies along all of these at once, until they are one again. So a
BatchNorm passes attention, which splits channels into heads and what a head has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rearrangement, Rule, axis_not_proven, follow_forward
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "Reshape"]


@dataclass(frozen=True, slots=True)
class Reshape(Labelled, Rearrangement):
    """The same elements in the same order under another shape (Reshape, Flatten, Squeeze, Unsqueeze)."""

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The same map along an axis in the same place, where there is one."""
        return _through_reshape(source.dimensions, target.dimensions, affine, axis)


Sizes = Sequence[int | str | None]
Product = tuple[int, tuple[str, ...]]


def _product(sizes: Sizes) -> Product | None:
    """The number of elements: what is known of it, and the names of the other factors; None where one has none."""
    if None in sizes:
        return None
    known = math.prod(size for size in sizes if isinstance(size, int))
    return known, tuple(sorted(size for size in sizes if isinstance(size, str)))


def _behind(shape: Sizes, axis: int) -> Product | None:
    """Elements behind an axis, for one index along it."""
    return _product(shape[axis + 1 :])


def _through_reshape(
    source: Sizes, target: Sizes, affine: Affine, axis: int, *, repeats: bool = True
) -> tuple[Affine, int] | None:
    """The same map along an axis of the other shape; None where the axis is torn apart or unknown.

    Args:
        source, target: the shapes.
        affine: the map.
        axis: of ``source``.
        repeats: the map may lie along a longer axis, or a shorter one, more or less often.
    """
    if axis >= len(source) or not affine.channels or source[axis] != affine.channels:
        return None
    places = range(len(target))
    found = (_at(source, target, affine, axis, place) for place in places)
    if (moved := next((at for at in found if at is not None), None)) is not None or not repeats:
        return moved
    found = (_repeated(source, target, affine, axis, place) for place in places)
    # Of several axes the one with the most numbers: on it, a layer may have a weight for each.
    return max((at for at in found if at is not None), key=lambda at: at[0].channels, default=None)


def _at(source: Sizes, target: Sizes, affine: Affine, axis: int, place: int) -> tuple[Affine, int] | None:
    """The map along the axis at ``place``, if as many elements are in front of it as in front of the map's axis."""
    size, behind, rest = target[place], _behind(source, axis), _behind(target, place)
    if not isinstance(size, int) or not size or (0, ()) in (behind, rest):
        return None
    blocks = [
        None if found is None else (found[0] * factor, found[1])
        for found, factor in ((behind, affine.channels), (rest, size))
    ]
    same = blocks[0] is not None and blocks[0] == blocks[1]
    if not same and not all(block is not None and not block[1] for block in blocks):
        before = _product(source[:axis])
        same = before is not None and before[0] > 0 and before == _product(target[:place])
    once = _along(affine, size, affine.channels) if same else None
    return None if once is None else (once, place)


def _repeated(
    source: Sizes, target: Sizes, affine: Affine, axis: int, place: int
) -> tuple[Affine, int] | None:
    """The map along the axis at ``place``, which may hold it several times, or a part that repeats."""
    size, behind, rest = target[place], _behind(source, axis), _behind(target, place)
    if not isinstance(size, int) or not size or behind is None or rest is None:
        return None
    if behind[1] != rest[1] or not behind[0] or not rest[0]:
        return None
    once = _along(affine, behind[0], rest[0])
    if once is None:
        return None
    period = math.gcd(size, once.channels)
    scale, shift = once.scale.reshape(-1, period), once.shift.reshape(-1, period)
    if (scale != scale[:1]).any() or (shift != shift[:1]).any():
        return None
    return Affine(np.tile(scale[0], size // period), np.tile(shift[0], size // period)), place


def _along(affine: Affine, more: int, less: int) -> Affine | None:
    """The map with ``more`` indices for ``less`` of its channels; None where some that share an index disagree."""
    if more % less == 0:
        times = more // less
        return Affine(np.repeat(affine.scale, times), np.repeat(affine.shift, times))
    if less % more or affine.channels % (less // more):
        return None
    scale, shift = affine.scale.reshape(-1, less // more), affine.shift.reshape(-1, less // more)
    if (scale != scale[:, :1]).any() or (shift != shift[:, :1]).any():
        return None
    return Affine(scale[:, 0].copy(), shift[:, 0].copy())


def _apart(source: Sizes, target: Sizes, axis: int) -> tuple[int, ...] | None:
    """The neighbouring axes of ``target`` that an axis of ``source`` was made of."""
    behind, size = _behind(source, axis), source[axis]
    if behind is None or size is None:
        return None
    for last in range(len(target)):
        if _behind(target, last) != behind:
            continue
        product = 1
        for first in range(last, -1, -1):
            part = target[first]
            if not isinstance(part, int):
                return None
            product *= part
            if product == size:
                return tuple(range(first, last + 1))
    return None


def _joined(shape: Sizes, axes: tuple[int, ...], channels: int) -> Sizes | None:
    """The shape with these axes as one, if they are neighbours and hold all channels."""
    if axes != tuple(range(axes[0], axes[-1] + 1)):
        return None
    if _product(shape[axes[0] : axes[-1] + 1]) != (channels, ()):
        return None
    return [*shape[: axes[0]], channels, *shape[axes[-1] + 1 :]]


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """The same map on the input, along one axis or along those that this one was made of."""
    data = node.input(DATA)
    if data is None or data.shape is None or output.shape is None or axis >= len(output.shape):
        return axis_not_proven(node)
    source, target = output.dimensions, data.dimensions
    moved = _through_reshape(source, target, affine, axis, repeats=False)
    axes = _apart(source, target, axis) if moved is None and source[axis] == affine.channels else None
    if axes is not None:
        return moves.produce(data, affine, axes, reader=node)
    moved = moved or _through_reshape(source, target, affine, axis)
    return axis_not_proven(node) if moved is None else moves.produce(data, *moved, reader=node)


def multi_axis(
    moves: Moves, node: Node, output: Value, affine: Affine, axes: tuple[int, ...]
) -> Refusal | None:
    """The same map on the input, along the axis that these were made of."""
    data = node.input(DATA)
    if data is None or output.shape is None:
        return axis_not_proven(node)
    whole = _joined(output.dimensions, axes, affine.channels)
    moved = None if whole is None else _through_reshape(whole, data.dimensions, affine, axes[0])
    return axis_not_proven(node) if moved is None else moves.produce(data, *moved, reader=node)


def from_onnx(call: OnnxCall) -> Op:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    return Reshape(call.operator)


def from_aten(call: AtenCall) -> Mapped | None:
    """``view`` and everything that is one."""
    plain = call.name in ("flatten", "unflatten", "squeeze", "unsqueeze")
    return call.unary(Reshape(call.name.capitalize() if plain else "Reshape"))


def flattened_shape(call: AtenCall) -> Shape | None:
    """The product of the sizes, where all are known."""
    shape, first, last = call.shape(), call.given.get("start_dim", 0), call.given.get("end_dim", -1)
    if not shape or not isinstance(first, int) or not isinstance(last, int):
        return None
    first, last = first % len(shape), last % len(shape)
    sizes = [size for size in shape[first : last + 1] if size is not None]
    total = math.prod(sizes) if len(sizes) == last + 1 - first else None
    return (*shape[:first], total, *shape[last + 1 :])


def unsqueezed_shape(call: AtenCall) -> Shape | None:
    """One more axis, of size 1."""
    shape, place = call.shape(), call.given.get("dim", 0)
    if not shape or not isinstance(place, int):
        return None
    place = place if place >= 0 else place + len(shape) + 1
    return (*shape[:place], 1, *shape[place:])


OPERATOR = Operator(
    Reshape,
    Rule("reshape", Reshape, backward, follow_forward, True, multi_axis),
    onnx=dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), from_onnx),
    aten=(
        Aten(
            (
                "reshape",
                "view",
                "_unsafe_view",
                "_reshape_alias",
                "view_as",
                "reshape_as",
                "unflatten",
                "ravel",
            ),
            from_aten,
            ("self", "*shape"),
            ("view",),
            fresh=False,
        ),
        Aten(
            ("flatten",),
            from_aten,
            ("self", "start_dim", "end_dim"),
            shape=flattened_shape,
            fresh=False,
        ),
        Aten(("squeeze",), from_aten, ("self", "dim"), fresh=False),
        Aten(("unsqueeze",), from_aten, ("self", "dim"), shape=unsqueezed_shape, fresh=False),
    ),
)
