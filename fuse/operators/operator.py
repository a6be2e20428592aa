"""All that is to be known of one operator: its class, its rule, and how each framework's calls are read as it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.operators.calls import Aten, OnnxReader
from convbn.fuse.operators.rule import Rule
from convbn.fuse.view.dataflow import Constant
from convbn.fuse.view.op import Op

__all__ = ["Evaluated", "Operator"]

Evaluated = tuple[tuple[int, ...], Callable[[], NDArray[np.float64]]]
"""The shape of a result, and its numbers, computed when they are asked for."""


@dataclass(frozen=True, slots=True)
class Operator:
    """What an operator's file hands to the registry.

    Attributes:
        kind: its class; a call is read as one only where the class's formula holds for it exactly.
        rule: how an affine map passes; None where none does.
        evaluate: what it gives for inputs that are constants (by slot); None where that is not computed here.
        onnx: readers by ONNX's name of the operator; ``DOMAIN::NAME`` for an operator of a domain of its own.
        aten: ATen operators that may be one.
    """

    kind: type[Op]
    rule: Rule | None = None
    evaluate: Callable[[Any, Sequence[Constant | None]], Evaluated | None] | None = None
    onnx: Mapping[str, OnnxReader] = field(default_factory=dict)
    aten: tuple[Aten, ...] = ()
