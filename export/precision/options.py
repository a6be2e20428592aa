"""How a precision is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from convbn.errors import UsageError

__all__ = ["METHODS", "QUANTISABLE", "PrecisionOptions"]

METHODS: Final = ("minmax", "entropy", "percentile")
RESTS: Final = ("fp32", "fp16")
#: Operators whose inputs and weights are quantised where nothing else is asked for.
QUANTISABLE: Final = ("Conv", "Gemm", "MatMul")
_KNOWN_QUANTISABLE: Final = (*QUANTISABLE, "ConvTranspose", "Add")


@dataclass(frozen=True)
class PrecisionOptions:
    """Options of :func:`convbn.export.precision.convert.convert`.

    Attributes:
        keep_io_types: leave the model's inputs and outputs in float32.
        keep_fp32: names of nodes that stay in float32.
        method: how int8 ranges follow from the data. ``minmax`` takes the extremes, ``entropy`` the range of
            least Kullback-Leibler divergence, ``percentile`` leaves the outermost values out.
        percentile: share of the values inside the range, in percent, for that method.
        quantise: operators to quantise.
        rest: what an int8 model computes in where nothing is quantised: ``fp32`` or ``fp16``.
    """

    keep_io_types: bool = True
    keep_fp32: tuple[str, ...] = ()
    method: str = "minmax"
    percentile: float = 99.999
    quantise: tuple[str, ...] = QUANTISABLE
    rest: str = "fp32"

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
