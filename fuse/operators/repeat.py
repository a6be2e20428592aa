"""Repeating: element i along an axis of the output is element ``i mod C`` of the data.

Forwards, a map comes along the axis as often as the data does. Backwards, the repeats must have the same map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Rearrangement, Rule, follow_backward, follow_forward, size_along
from convbn.fuse.view.dataflow import Value
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "Repeat"]


@dataclass(frozen=True, slots=True)
class Repeat(Labelled, Rearrangement):
    """The data again and again along its axes, which are the last ones of the output (Expand, Tile). Slot: data."""

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The numbers as often as there is room for them, or those of one repeat if they are all the same."""
        if source.rank is None or target.rank is None or size_along(source, axis) != affine.channels:
            return None
        place = axis + target.rank - source.rank
        size = size_along(target, place) if place >= 0 else None
        whole, part = (affine.channels, size) if back else (size, affine.channels)
        if not whole or not part or whole % part:
            return None
        if not back:
            return Affine(np.tile(affine.scale, whole // part), np.tile(affine.shift, whole // part)), place
        scales, shifts = affine.scale.reshape(-1, part), affine.shift.reshape(-1, part)
        same = (scales == scales[0]).all() and (shifts == shifts[0]).all()
        return (Affine(scales[0], shifts[0]), place) if same else None


def from_onnx(call: OnnxCall) -> Op | None:
    """Expand and Tile, of data that flows."""
    data = call.input(DATA)
    return None if data is None or data.constant is not None else Repeat(call.operator)


def from_aten(call: AtenCall) -> Mapped | None:
    """``expand``, ``repeat`` and ``tile``."""
    return call.unary(Repeat(call.name.capitalize()))


OPERATOR = Operator(
    Repeat,
    Rule("repeat", Repeat, follow_backward, follow_forward, through=True),
    onnx=dict.fromkeys(("Expand", "Tile"), from_onnx),
    aten=(
        Aten(("expand", "expand_as", "broadcast_to"), from_aten, ("self", "*size"), fresh=False),
        Aten(("repeat", "tile"), from_aten, ("self", "*repeats")),
    ),
)
