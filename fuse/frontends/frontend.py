"""What a frontend hands to the planner, and what it must be able to do with the plan.

A frontend never decides what is exact: it maps operators to :mod:`convbn.fuse.view.ops` where their
formula holds, states through locks which edits it cannot make, and makes the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from convbn.fuse.plan.plan import Kept
from convbn.fuse.view.edits import Edit
from convbn.fuse.view.view import View

__all__ = ["Applied", "Capture"]


@dataclass(frozen=True, slots=True)
class Applied:
    """A model after the edits.

    Attributes:
        model: of the kind that was captured; never the captured object itself.
        nodes: number of operator calls in it.
        computed: what gives the values of tensors that are computed when they are written, by the location
            that stands for them in the model.
    """

    model: Any
    nodes: int
    computed: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capture:
    """The dataflow of one model, and how to edit it.

    Attributes:
        view: what the planner works on.
        nodes: number of operator calls in the model as it came.
        apply: makes the edits of a plan, in order, on a copy of the model.
        unreachable: BatchNorms of the model that the view does not show, with the reason.
        notes: what a reader of the report should know about the input, in sentences.
        how: one sentence on how the dataflow was obtained and what that proves.
        seconds: time it took.
    """

    view: View
    nodes: int
    apply: Callable[[Sequence[Edit]], Applied]
    unreachable: list[Kept] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    how: str = ""
    seconds: float = 0.0
