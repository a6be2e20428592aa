"""Per-channel affine maps, ``y[c] = scale[c]·x[c] + shift[c]``: what a BatchNorm is in inference.

All arithmetic is float64, from the parameters as they are stored. Rounding happens once, where a
result is stored again (:mod:`convbn.fuse.algebra.rounding`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.refusal import Reason, Refusal

__all__ = ["Affine", "from_batchnorm"]

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """``y = scale·x + shift`` per channel.

    Attributes:
        scale: float64 ``[C]``.
        shift: float64 ``[C]``.
    """

    scale: Vector
    shift: Vector

    @property
    def channels(self) -> int:
        """C."""
        return int(self.scale.shape[0])

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self.is_shift and not self.shift.any()

    @property
    def is_shift(self) -> bool:
        """Whether it only adds."""
        return bool((self.scale == 1).all())

    @property
    def keeps_size(self) -> bool:
        """Whether it only adds and changes signs."""
        return bool((np.abs(self.scale) == 1).all())

    @property
    def is_scale(self) -> bool:
        """Whether it only multiplies."""
        return not self.shift.any()

    @classmethod
    def shift_by(cls, shift: Vector) -> Affine:
        """``x + shift``."""
        return cls(np.ones_like(shift), shift)

    @classmethod
    def scale_by(cls, scale: Vector) -> Affine:
        """``scale·x``."""
        return cls(scale, np.zeros_like(scale))

    def inverse(self) -> Affine | None:
        """``(x − t)/s``; None where some ``s`` is 0 or the result is not finite."""
        with np.errstate(all="ignore"):
            scale = 1 / self.scale
            shift = -self.shift * scale
        return Affine(scale, shift) if np.isfinite(scale).all() and np.isfinite(shift).all() else None

    def after(self, first: Affine) -> Affine:
        """This map applied to the result of ``first``: ``(s₂·s₁, s₂·t₁ + t₂)``."""
        return Affine(self.scale * first.scale, self.scale * first.shift + self.shift)


def from_batchnorm(
    gamma: NDArray[Any] | None,
    beta: NDArray[Any] | None,
    mean: NDArray[Any],
    variance: NDArray[Any],
    epsilon: float,
) -> Affine | Refusal:
    """The map ``s = γ/√(σ²+ε)``, ``t = β − μ·s`` of a BatchNorm in inference.

    Args:
        gamma: ``[C]``, or None for 1.
        beta: ``[C]``, or None for 0.
        mean: running mean μ, ``[C]``.
        variance: running variance σ², ``[C]``.
        epsilon: ε.

    Returns:
        The map, or a refusal where the parameters are not C numbers each, a number is not finite,
        ``σ² + ε`` is not positive or the map has numbers that float64 does not.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 2.
    """
    channels = mean.shape
    given = {"γ": gamma, "β": beta, "μ": mean, "σ²": variance}
    for symbol, array in given.items():
        if array is None:
            continue
        if array.ndim != 1 or array.shape != channels:
            return Refusal(
                Reason.PARAMETERS_MALFORMED,
                f"{symbol} has shape {list(array.shape)} where μ has {list(channels)}",
            )
    mean64, variance64 = mean.astype(np.float64), variance.astype(np.float64)
    gamma64 = np.ones(channels) if gamma is None else gamma.astype(np.float64)
    beta64 = np.zeros(channels) if beta is None else beta.astype(np.float64)
    for symbol, values in (("γ", gamma64), ("β", beta64), ("μ", mean64), ("σ²", variance64)):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            return Refusal(Reason.BAD_STATISTICS, f"{bad} of {values.size} values of {symbol} are not finite")
    spread = variance64 + epsilon
    bad = int(np.count_nonzero(~(spread > 0)))
    if bad:
        return Refusal(
            Reason.BAD_STATISTICS,
            f"σ² + ε is not positive in {bad} of {spread.size} channels (smallest: {spread.min():.3g})",
        )
    with np.errstate(all="ignore"):
        scale = gamma64 / np.sqrt(spread)
        shift = beta64 - mean64 * scale
    bad = int(np.count_nonzero(~(np.isfinite(scale) & np.isfinite(shift))))
    if bad:
        return Refusal(
            Reason.OUT_OF_RANGE, f"the map leaves the range of float64 in {bad} of {scale.size} channels"
        )
    return Affine(scale, shift)
