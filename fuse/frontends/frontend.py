"""What a frontend is: which models it takes, what it hands to the planner, and how it makes the edits of a plan.

A frontend never decides what is exact: it maps calls to :mod:`convbn.fuse.operators` where their
formula holds, states through locks which edits it cannot make, and makes the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from convbn.fuse.plan.plan import Folded, Kept
from convbn.fuse.view.edits import Edit
from convbn.fuse.view.view import View

if TYPE_CHECKING:
    from convbn.fuse.report import Key

__all__ = ["Applied", "Capture", "Frontend", "Request", "State"]


@dataclass(frozen=True, slots=True)
class Applied:
    """A model after the edits.

    Attributes:
        model: of the kind that was captured; never the captured object itself.
        operators: how often each operator is called in it.
        computed: what gives the values of tensors that are computed when they are written, by the location
            that stands for them in the model.
    """

    model: Any
    operators: Counter[str]
    computed: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capture:
    """The dataflow of one model, and how to edit it.

    Attributes:
        view: what the planner works on.
        operators: how often each operator is called in the model as it came.
        apply: makes the edits of a plan, in order, on a copy of the model.
        unreachable: BatchNorms of the model that the view does not show, with the reason.
        notes: what a reader of the report should know about the input, in sentences.
        how: one sentence on how the dataflow was obtained and what that proves.
        seconds: time it took.
    """

    view: View
    operators: Counter[str]
    apply: Callable[[Sequence[Edit]], Applied]
    unreachable: list[Kept] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    how: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """How a model is to be captured; a frontend passes over what its models do not have.

    Attributes:
        example_inputs: positional inputs; shapes are taken from them.
        freeze: weights that a caller could replace are constants.
        owned: the model may be edited in place.
        read: gives the raw bytes of tensors that lie outside of the model; folded ones are then computed when they
            are written.
        materialize: weights that are computed from parameters at every call are to become parameters.
        input_shapes: full shapes by input name, for models whose inputs have open dimensions or no stated rank.
    """

    example_inputs: tuple[Any, ...] | None = None
    freeze: bool = False
    owned: bool = False
    read: Callable[[Any], bytes] | None = None
    materialize: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] | None = None


class State(Protocol):
    """The named tensors of a model as they were before a fold."""

    def keys(self, result: Any, folded: Sequence[Folded]) -> tuple[Key, ...]:
        """What became of each of them in the folded model."""
        ...


@dataclass(frozen=True, slots=True)
class Frontend:
    """A kind of model that can be folded.

    Attributes:
        kind: its name in reports.
        module: where the class of such models is; only looked into where it is imported already.
        name: of the class.
        capture: a model's dataflow, and how to edit it.
        runnable: a form of the model that the runtimes take: an ``onnx.ModelProto``, a module or a program.
        state: remembers a model's tensors, if the report is to say what becomes of each.
    """

    kind: str
    module: str
    name: str
    capture: Callable[[Any, Request], Capture]
    runnable: Callable[[Any], Any] = lambda model: model
    state: Callable[[Any], State] | None = None
