"""The vocabulary of the dataflow view: what an operator does, in neither framework's words.

Each class states the formula it stands for and the order of its input slots. A frontend maps an
operator of its framework here only when the formula holds for it exactly; whatever has no class of
its own is :class:`Other`, which no rule touches. Layouts are those that ONNX and PyTorch share.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "Activation",
    "Arithmetic",
    "BatchNorm",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Dequantize",
    "Elementwise",
    "Linear",
    "Mean",
    "Mixture",
    "Normalization",
    "Op",
    "Other",
    "Pad",
    "Passage",
    "Pool",
    "Reshape",
    "Slice",
    "Split",
    "Transpose",
    "Window",
]

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


@dataclass(frozen=True, slots=True)
class Conv(Op):
    """Cross-correlation of any spatial rank, ``y[n,o] = Σ_c W[o,c] ⋆ x[n,c] + b[o]``.

    Slots: data ``[N, C, *S]``, weight ``[O, C/groups, *K]``, bias ``[O]``. The window says where the
    kernel is laid, with zeros around the data; None where the frontend does not know, and then no rule
    may assume that there are no zeros. ``channel_axis`` is 0 for data of one sample, ``[C, *S]``, and
    None where the rank is not known.
    """

    groups: int
    channel_axis: int | None = 1
    window: Window | None = None

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
    bias broadcast to ``[O]``. The channel axis is the output's last. With ``transposed_data`` the data is
    ``[I, N]`` and read the other way round.
    """

    output_axis: int
    data_factor: float = 1.0
    bias_factor: float = 1.0
    transposed_data: bool = False

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
class Normalization(Op):
    """A normalisation by the data's own statistics, then ``·γ + β`` along ``channel_axis``.

    Slots: data, γ ``[C]``, β ``[C]``, which may be absent. ``channel_axis`` None is the last one (LayerNorm);
    1 for group and instance normalisation. ``shifts`` is False where the operator has no β (RMSNorm).
    """

    label: str
    channel_axis: int | None
    shifts: bool = True

    def describe(self) -> str:
        """The framework's own name."""
        return self.label

    def output_axis_of(self, rank: int | None) -> int | None:
        """The channel axis, counted from the front."""
        last = None if rank is None else rank - 1
        return last if self.channel_axis is None else self.channel_axis


@dataclass(frozen=True, slots=True)
class Dequantize(Op):
    """``y = scale·(q − zero)``. Slots: integers q, scale, zero point, which may be absent.

    ``scale`` is one number (``axis`` None) or one for each index along ``axis``.
    """

    axis: int | None


class Arithmetic(StrEnum):
    """The four operations of :class:`Elementwise`."""

    ADD = "Add"
    SUBTRACT = "Sub"
    MULTIPLY = "Mul"
    DIVIDE = "Div"


@dataclass(frozen=True, slots=True)
class Elementwise(Op):
    """``a ∘ b`` with NumPy's broadcasting. Slots: a, b."""

    operation: Arithmetic

    def describe(self) -> str:
        """The operation's name."""
        return str(self.operation)


@dataclass(frozen=True, slots=True)
class Activation(Op):
    """A function of each element with ``f(s·x) = s·f(x)`` for every s > 0: ReLU, LeakyReLU, PReLU.

    Slots: data, and parameters that do not matter for this.
    """

    label: str

    def describe(self) -> str:
        """The framework's own name."""
        return self.label


@dataclass(frozen=True, slots=True)
class Pool(Op):
    """A reduction over windows of the spatial axes (2 and on).

    Attributes:
        label: the framework's own name.
        average: whether each output is a weighted mean of inputs with weights that sum to 1; else it
            is their maximum.
        counts_padding: whether an average counts zeros around the data, so that its weights do not sum
            to 1 at the borders.
        kernel, window: the size of an average's windows and where they lie, if each output is the plain
            mean of that many numbers, zeros around the data among them; else None.
    """

    label: str
    average: bool
    counts_padding: bool = False
    kernel: tuple[int, ...] | None = None
    window: Window | None = None

    def describe(self) -> str:
        """The framework's own name."""
        return self.label


@dataclass(frozen=True, slots=True)
class Pad(Op):
    """More (or fewer) elements at the ends of ``axes``: zeros, or copies of elements that are there."""

    label: str
    axes: tuple[int, ...]
    zeros: bool

    def describe(self) -> str:
        """The framework's own name."""
        return self.label


@dataclass(frozen=True, slots=True)
class Mean(Op):
    """The mean over ``axes`` of data of rank ``rank``."""

    axes: tuple[int, ...]
    rank: int
    keepdims: bool


@dataclass(frozen=True, slots=True)
class Mixture(Op):
    """A product with weights that sum to 1: attention's ``softmax(·)·V``.

    Slots: both operands of the product; the values stand at ``values``. Each output is a weighted mean of
    values that have the same index along ``axis``, counted from the back (−1, or −2 for values on the left).
    """

    values: int
    axis: int

    def describe(self) -> str:
        """As reports call it."""
        return "MatMul"


@dataclass(frozen=True, slots=True)
class Concat(Op):
    """The inputs one after another along ``axis``."""

    axis: int


@dataclass(frozen=True, slots=True)
class Split(Op):
    """The data in pieces along ``axis``, one an output."""

    axis: int


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """The indices ``start`` to ``stop`` (without it) of ``axis``, one after another; all of the other axes."""

    axis: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Transpose(Op):
    """Output axis i is input axis ``order[i]``."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshape(Op):
    """The same elements in the same order under another shape (Reshape, Flatten, Squeeze, Unsqueeze)."""

    label: str

    def describe(self) -> str:
        """The framework's own name."""
        return self.label


@dataclass(frozen=True, slots=True)
class Passage(Op):
    """What treats every channel alike and gives each affine map of its input back: Identity, Dropout,
    interpolation whose weights sum to 1.
    """

    label: str

    def describe(self) -> str:
        """The framework's own name."""
        return self.label


@dataclass(frozen=True, slots=True)
class Other(Op):
    """An operator that the algebra has no rule for, known by its framework's name."""

    label: str

    def describe(self) -> str:
        """The framework's own name for the operator."""
        return self.label
