"""How a precision is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from convbn.errors import UsageError

__all__ = ["AUTO", "ENDS", "METHODS", "QUANTISABLE", "PrecisionOptions"]

METHODS: Final = ("mse", "minmax", "entropy", "percentile")
AUTO: Final = "auto"
"""Among the nodes to keep in float32: the worst ones, as few as do."""
ENDS: Final = ("first", "last")
"""Among the nodes to keep out of int8: the ends of the network."""
RESTS: Final = ("fp32", "fp16")
#: Operators whose inputs and weights are quantised where nothing else is asked for.
QUANTISABLE: Final = ("Conv", "Gemm", "MatMul")
_KNOWN_QUANTISABLE: Final = (*QUANTISABLE, "ConvTranspose", "Add")


@dataclass(frozen=True)
class PrecisionOptions:
    """Options of :func:`convbn.export.precision.convert.convert`.

    Attributes:
        keep_io_types: leave the model's inputs and outputs in float32.
        keep_fp32: names of nodes that stay in float32; of int8 also ``first`` and ``last``, the ends of the network.
            Where a model is verified, ``auto`` adds the worst nodes, as few as bring it within its bound.
        method: how int8 ranges follow from the data. ``mse`` takes the range of least squared error, ``minmax`` the
            extremes, ``entropy`` the range of least Kullback-Leibler divergence, ``percentile`` leaves the outermost
            values out.
        percentile: share of the values inside the range, in percent, for that method.
        quantise: operators to quantise.
        rest: what an int8 model computes in where nothing is quantised: ``fp32`` or ``fp16``.
        equalise: move scales between layers before they are quantised, exactly, so that channels become alike.
        correct_biases: let biases make up for what quantisation adds on average.
        sensitivity: measure what each layer loses by being quantised alone.
    """

    keep_io_types: bool = True
    keep_fp32: tuple[str, ...] = ()
    method: str = "mse"
    percentile: float = 99.999
    quantise: tuple[str, ...] = QUANTISABLE
    rest: str = "fp32"
    equalise: bool = True
    correct_biases: bool = True
    sensitivity: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("calibration method", self.method, METHODS),
            ("rest", self.rest, RESTS),
        ):
            if value not in known:
                raise UsageError(f"there is no {what} {value!r}", hint=f"choose {' or '.join(known)}")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"a percentile of {self.percentile:g} is not above 50 and at most 100")
        unknown = [operator for operator in self.quantise if operator not in _KNOWN_QUANTISABLE]
        if unknown or not self.quantise:
            shown = repr(unknown[0]) if unknown else "no operator"
            raise UsageError(
                f"{shown} cannot be quantised", hint=f"choose of {', '.join(_KNOWN_QUANTISABLE)}"
            )
