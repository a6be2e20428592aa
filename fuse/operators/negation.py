"""A change of sign: ``s·(−x) + t = −(s·x − t)``, and ``−(s·x + t) = s·(−x) − t``: the shift changes its sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.operators.rule import Rearrangement, Rule, follow_backward, follow_forward
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.op import Op

__all__ = ["OPERATOR", "Negation"]


@dataclass(frozen=True, slots=True)
class Negation(Rearrangement):
    """``−x``. Slot: data."""

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The same scale and the opposite shift."""
        return Affine(affine.scale, -affine.shift), axis


def evaluated(op: Negation, known: Sequence[Constant | None]) -> Evaluated | None:
    """Over a constant."""
    data = known[0]
    return None if data is None else (data.shape, lambda: -data.exact())


def from_onnx(call: OnnxCall) -> Op:
    """Neg."""
    return Negation()


def from_aten(call: AtenCall) -> Mapped | None:
    """``neg``."""
    return call.unary(Negation())


OPERATOR = Operator(
    Negation,
    Rule("negation", Negation, follow_backward, follow_forward, through=True),
    evaluated,
    {"Neg": from_onnx},
    (Aten(("neg",), from_aten, ("self",), ("negative",), shape=AtenCall.shape, keeps_rank=True),),
)
