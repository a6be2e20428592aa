"""The vocabulary of the dataflow view: what an operator does, in neither framework's words.

Each class states the formula it stands for and the order of its input slots. A frontend maps an
operator of its framework here only when the formula holds for it exactly; whatever has no class of
its own is :class:`Other`, which no rule touches. Layouts are those that ONNX and PyTorch share.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatchNorm", "Conv", "ConvTranspose", "Linear", "Op", "Other"]

DATA, WEIGHT, BIAS = 0, 1, 2
"""Input slots of every linear layer; the bias may be absent."""


@dataclass(frozen=True, slots=True)
class Op:
    """What a node computes."""

    def describe(self) -> str:
        """The operator's name as a reader of a report knows it."""
        return type(self).__name__

    def output_axis_of(self, rank: int | None) -> int | None:
        """The channel axis of an output of this rank; None where there is none or it is not known."""
        return None


@dataclass(frozen=True, slots=True)
class Conv(Op):
    """Cross-correlation of any spatial rank, ``y[n,o] = Σ_c W[o,c] ⋆ x[n,c] + b[o]``.

    Slots: data ``[N, C, *S]``, weight ``[O, C/groups, *K]``, bias ``[O]``. Strides, padding and
    dilation act on the data alone, so no rule that only scales output channels needs them.
    ``channel_axis`` is 0 for data of one sample, ``[C, *S]``, and None where the rank is not known.
    """

    groups: int
    channel_axis: int | None = 1

    def output_axis_of(self, rank: int | None) -> int | None:
        """Whatever the rank."""
        return self.channel_axis


@dataclass(frozen=True, slots=True)
class ConvTranspose(Op):
    """Transposed convolution; slots as :class:`Conv`, weight ``[C, O/groups, *K]``, group-major.

    Output channel ``o`` of group ``g`` is ``g·(O/groups) + o``: input channels carry the group, not
    the weight's second axis.
    """

    groups: int
    channel_axis: int | None = 1

    def output_axis_of(self, rank: int | None) -> int | None:
        """Whatever the rank."""
        return self.channel_axis


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """``y = data_factor · x·W + bias_factor · b`` over the last axis of ``x``.

    Slots: data ``[..., I]``, weight with axes ``output_axis`` (size O) and the other one (size I),
    bias broadcast to ``[O]``. The channel axis is the output's last.
    """

    output_axis: int
    data_factor: float = 1.0
    bias_factor: float = 1.0

    def output_axis_of(self, rank: int | None) -> int | None:
        """The last axis."""
        return None if rank is None else rank - 1


@dataclass(frozen=True, slots=True)
class BatchNorm(Op):
    """``y = γ·(x − μ)/√(σ² + ε) + β`` along ``channel_axis``.

    Slots: data, γ, β, μ, σ²; γ or β may be absent and then are 1 and 0.
    """

    epsilon: float
    training: bool = False
    channel_axis: int = 1

    def output_axis_of(self, rank: int | None) -> int | None:
        """Whatever the rank."""
        return self.channel_axis


@dataclass(frozen=True, slots=True)
class Other(Op):
    """An operator that the algebra has no rule for, known by its framework's name."""

    label: str

    def describe(self) -> str:
        """The framework's own name for the operator."""
        return self.label
