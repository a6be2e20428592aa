"""The plan of an equalisation: for each group of channels the scale that helps most, and biases that can go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from convbn.common.encoding import JsonReady
from convbn.fuse.algebra.equalise import Consumer, best_scale
from convbn.fuse.plan.drafting.changes import UnfitError
from convbn.fuse.plan.equalisation.absorption import absorptions
from convbn.fuse.plan.equalisation.groups import Group, as_matrix, free_groups, moved_by
from convbn.fuse.plan.kernel_patterns import keep_whole
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import Edit
from convbn.fuse.view.op import WEIGHT
from convbn.fuse.view.view import View

__all__ = ["Absorbed", "ChannelRange", "EqualisationPlan", "Scaled", "equalisation_plan"]


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """What was seen of each input channel of a layer: max |x| and E[x²], float64 ``[I]``."""

    largest: NDArray[np.float64]
    power: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scaled(JsonReady):
    """Channels that were given scales.

    Attributes:
        layer: one that gives them.
        readers: the layers that make up for the scale.
        channels: how many.
        largest_factor, smallest_factor: of the scales.
        noise_before, noise_after: the rounding noise that int8 puts on what the readers give, over its power, in units
            of 1/(12·127²).
    """

    layer: str
    readers: tuple[str, ...]
    channels: int
    largest_factor: float
    smallest_factor: float
    noise_before: float
    noise_after: float


@dataclass(frozen=True, slots=True)
class Absorbed(JsonReady):
    """A layer whose biases went on through a ReLU, and of how many of its channels."""

    layer: str
    channels: int


@dataclass(frozen=True, slots=True)
class EqualisationPlan:
    """What to do with a model; every edit is exact."""

    scaled: list[Scaled] = field(default_factory=list)
    absorbed: list[Absorbed] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)


def equalisation_plan(view: View, ranges: Mapping[str, ChannelRange]) -> EqualisationPlan:
    """Plan it; the view is left as the model will be.

    Args:
        view: of a folded model; it is changed.
        ranges: what each linear layer reads, by the name of the layer. Channels that go into a layer without one
            are left alone.
    """
    keep_whole(view)
    plan = EqualisationPlan()
    # All scales are chosen on the weights as they stand: a row that is scaled as a whole loses nothing by it.
    chosen = [(group, _best(group, ranges)) for group in free_groups(view)]
    for group, best in chosen:
        if best is None:
            continue
        scale, before, after = best
        draft = moved_by(view, group.producer, group.axis, scale)
        try:
            edits: tuple[Edit, ...] = () if draft is None else draft.edits
        except UnfitError:  # a weight would leave the range of its type
            continue
        if edits:
            _make(view, plan, edits)
            names = tuple(node.name for node, _ in group.consumers)
            extremes = float(scale.max()), float(scale.min())
            plan.scaled.append(Scaled(group.producer.name, names, group.channels, *extremes, before, after))
    for node, channels, edits in absorptions(view):
        _make(view, plan, edits)
        plan.absorbed.append(Absorbed(node.name, channels))
    return plan


def _make(view: View, plan: EqualisationPlan, edits: tuple[Edit, ...]) -> None:
    for edit in edits:
        view.apply(edit)
    plan.edits.extend(edits)


def _best(
    group: Group, ranges: Mapping[str, ChannelRange]
) -> tuple[NDArray[np.float64], float, float] | None:
    consumers = []
    for node, channel in group.consumers:
        seen = ranges.get(node.name)
        if seen is None or seen.largest.shape != channel.shape:
            return None
        consumers.append(Consumer(np.abs(as_matrix(node, _weight(node))), seen.largest, seen.power, channel))
    return best_scale(consumers, group.channels)


def _weight(node: Node) -> NDArray[np.float64]:
    return cast(Constant, cast(Value, node.input(WEIGHT)).constant).exact()
