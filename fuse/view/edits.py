"""The edits a plan is made of; a frontend knows how to make each of them in its own kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import Op

__all__ = ["Bypass", "Edit", "Evaluate", "Replace", "SetConstant"]


@dataclass(frozen=True, slots=True, eq=False)
class SetConstant:
    """Give ``node`` a constant at input ``slot``, adding the slot where it was empty.

    Other readers of the constant that stood there keep it. The numbers are computed when the frontend
    asks for them, one tensor at a time, so a plan holds no second copy of the weights.
    """

    node: Node
    slot: int
    constant: Constant

    @property
    def values(self) -> NDArray[Any]:
        """The numbers, computed anew at each call."""
        return self.constant.array()


@dataclass(frozen=True, slots=True, eq=False)
class Bypass:
    """Remove ``node``: whoever read its first output reads its input at ``slot`` instead."""

    node: Node
    slot: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """Make ``node`` another operator over these operands, by slot; its outputs stay."""

    node: Node
    op: Op
    operands: tuple[Value | Constant | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluate:
    """Remove ``node``, whose first output is this constant: whoever read that output reads the constant."""

    node: Node
    constant: Constant


Edit = SetConstant | Bypass | Replace | Evaluate
