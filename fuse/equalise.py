"""The entry point of an equalisation: a folded model with scales moved between its layers, exactly, for int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convbn.errors import UsageError
from convbn.fuse.frontends.frontend import Request
from convbn.fuse.kinds import frontend_of
from convbn.fuse.plan.equalisation.plan import Absorbed, ChannelRange, Scaled, equalisation_plan

__all__ = ["ChannelRange", "Equalised", "equalise"]


@dataclass(frozen=True, slots=True)
class Equalised:
    """A model that computes what the given one does.

    Attributes:
        model: of the kind that came in; the given one is left as it is.
        scaled: the channels that were given scales.
        absorbed: the layers whose biases went on.
    """

    model: Any
    scaled: tuple[Scaled, ...]
    absorbed: tuple[Absorbed, ...]


def equalise(model: Any, ranges: Mapping[str, ChannelRange]) -> Equalised:
    """Move scales between the layers of a folded graph so that its channels become alike.

    ``y = W₂·f(W₁x + b₁)`` is ``(W₂S⁻¹)·f(S·W₁x + S·b₁)`` for a positive diagonal S and every f with
    ``f(s·x) = s·f(x)``.
    Which S is best: :mod:`convbn.fuse.algebra.equalise`. The arithmetic is float64 with one rounding.

    Args:
        model: an ``onnx.ModelProto`` or an ``onnx_graphsurgeon.Graph``.
        ranges: what each linear layer reads, by the name of its node.

    Raises:
        UsageError: the object is neither; a module's forward may do what its layers do not show.
        BadInputError: the model cannot be read.
    """
    frontend = frontend_of(model)
    if frontend is None or not frontend.kind.startswith("onnx"):
        kind = type(model).__qualname__ if frontend is None else frontend.kind
        raise UsageError(f"cannot equalise a {kind}", hint="export it to ONNX first")
    captured = frontend.capture(model, Request())
    plan = equalisation_plan(captured.view, ranges)
    return Equalised(captured.apply(plan.edits).model, tuple(plan.scaled), tuple(plan.absorbed))
