"""What an operator of the view is: its formula's class, the order of its inputs, and where a kernel lies.

Each operator is one file in :mod:`convbn.fuse.operators`, and its class states the formula it stands for and the order
of its input slots. Layouts are those that ONNX and PyTorch share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["BIAS", "DATA", "WEIGHT", "Labelled", "Op", "Other", "Window"]

DATA, WEIGHT, BIAS = 0, 1, 2
"""Input slots of every linear layer; the bias may be absent."""


@dataclass(frozen=True, slots=True)
class Op:
    """What a node computes."""

    is_batchnorm: ClassVar[bool] = False
    """Whether it is what a fold is about."""

    def describe(self) -> str:
        """The operator's name as a reader of a report knows it."""
        return type(self).__name__

    def output_axis_of(self, rank: int | None) -> int | None:
        """The channel axis of an output of this rank; None where there is none or it is not known."""
        return None

    def sees_numbers(self, slot: int) -> bool:
        """Whether the numbers at a slot matter to it; else it asks for their shape and type alone."""
        return True


@dataclass(frozen=True, slots=True)
class Labelled(Op):
    """An operator that several operators of a framework stand for; ``label`` is the framework's own name."""

    label: str

    def describe(self) -> str:
        """The framework's own name."""
        return self.label


@dataclass(frozen=True, slots=True)
class Other(Labelled):
    """An operator that the algebra has no rule for, known by its framework's name."""


@dataclass(frozen=True, slots=True)
class Window:
    """Where a kernel is laid over its data, axis by axis.

    Attributes:
        strides, dilations: one number a spatial axis.
        begin, end: padding before and after each spatial axis.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Whether the kernel ever lies over padding."""
        return any(self.begin) or any(self.end)
