"""BatchNorm and an affine map, on either side: two affine maps in a row are one.

The BatchNorm stays one. With its own map ``(s₁, t₁)``, ``s₁ = γ/√(σ² + ε)``:

* a map ``(s, t)`` behind it: ``γ' = s·γ``, ``β' = s·β + t``;
* a map in front of it: the whole is ``s₁s·x + (s₁·t + t₁)``. The statistics follow the data, ``μ' = (μ − t)/s`` and
  ``σ'² + ε = (σ² + ε)/s²``, so that they go on telling its size; with them as they are stored,
  ``γ' = s₁s·√(σ'² + ε)`` and ``β' = s₁·t + t₁ + s₁s·μ'`` make the map exact.

It matters where the BatchNorm cannot go anywhere itself: behind a graph input or a nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine, from_batchnorm
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.operators.rule import Moves, Pending, Rule, wrong_axis, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "BatchNorm"]


@dataclass(frozen=True, slots=True)
class BatchNorm(Op):
    """``y = γ·(x − μ)/√(σ² + ε) + β`` along ``channel_axis``.

    Slots: data, γ, β, μ, σ²; γ or β may be absent and then are 1 and 0.
    """

    is_batchnorm = True

    epsilon: float
    training: bool = False
    channel_axis: int = 1

    def output_axis_of(self, rank: int | None) -> int | None:
        """Whatever the rank."""
        return self.channel_axis


GAMMA, BETA, MEAN, VARIANCE = 1, 2, 3, 4


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``γ' = γ·s``, ``β' = β·s + t``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    constants = _constants(moves, node, affine)
    if isinstance(constants, Refusal):
        return constants
    gamma, beta, _, _ = constants
    scaled = Pending(gamma.shape, lambda: round_scaled(gamma, affine.scale, axes=(0,)))
    if (refusal := moves.set(node, GAMMA, scaled)) is not None:
        return refusal

    def shifted() -> Constant | Refusal:
        return round_vector(affine.scale * beta.exact() + affine.shift, beta.dtype, "shift β")

    return moves.set(node, BETA, Pending(beta.shape, shifted))


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``γ' = s₁s·√(σ'² + ε)``, ``β' = s₁·t + t₁ + s₁s·μ'``."""
    op = cast(BatchNorm, node.op)
    if slot != DATA or axis != op.channel_axis:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} does not read the map along its channels")
    constants = _constants(moves, node, affine)
    if isinstance(constants, Refusal):
        return constants
    numbers = cache(lambda: _behind(node, constants, affine))

    def of(slot: int) -> Callable[[], Constant | Refusal]:
        return lambda: made if isinstance(made := numbers(), Refusal) else made[slot - 1]

    for slot, constant in enumerate(constants, start=1):
        if (refusal := moves.set(node, slot, Pending(constant.shape, of(slot)))) is not None:
            return refusal
    return None


def _behind(
    node: Node, constants: tuple[Constant, Constant, Constant, Constant], affine: Affine
) -> tuple[Constant, Constant, Constant, Constant] | Refusal:
    """γ', β', μ' and σ'² of a BatchNorm with a map in front of it."""
    gamma, beta, mean, variance = constants
    epsilon = cast(BatchNorm, node.op).epsilon
    own = from_batchnorm(gamma.exact(), beta.exact(), mean.exact(), variance.exact(), epsilon)
    if isinstance(own, Refusal):
        return own
    whole = own.after(affine)
    # Where s is 0 the data is a constant and its statistics do not matter.
    divisor = np.where(affine.scale == 0, 1.0, affine.scale)
    spread = (variance.exact() + epsilon) / divisor**2
    new_mean = round_vector((mean.exact() - affine.shift) / divisor, mean.dtype, "mean μ")
    if isinstance(new_mean, Refusal):
        return new_mean
    new_variance = round_vector(np.maximum(spread - epsilon, 0), variance.dtype, "variance σ²")
    if isinstance(new_variance, Refusal):
        return new_variance
    # As stored, not as computed: γ' and β' are made for exactly these numbers.
    stored_mean, stored_variance = Constant.of(new_mean.array()), Constant.of(new_variance.array())
    stored_spread = stored_variance.exact() + epsilon
    if not (stored_spread > 0).all():
        return Refusal(Reason.OUT_OF_RANGE, f"the variance of {node.label} would vanish")
    new_gamma = round_vector(whole.scale * np.sqrt(stored_spread), gamma.dtype, "scale γ")
    if isinstance(new_gamma, Refusal):
        return new_gamma
    new_beta = round_vector(whole.shift + whole.scale * stored_mean.exact(), beta.dtype, "shift β")
    return new_beta if isinstance(new_beta, Refusal) else (new_gamma, new_beta, stored_mean, stored_variance)


def _constants(
    moves: Moves, node: Node, affine: Affine
) -> tuple[Constant, Constant, Constant, Constant] | Refusal:
    """γ, β, μ and σ², with 1 and 0 where γ and β are absent."""
    if cast(BatchNorm, node.op).training:
        return Refusal(Reason.TRAINING_MODE, f"{node.label} normalises by the batch at hand")
    found: list[Constant | None] = []
    for slot in (GAMMA, BETA, MEAN, VARIANCE):
        constant = moves.constant(node, slot)
        if isinstance(constant, Refusal):
            return constant
        found.append(constant)
    gamma, beta, mean, variance = found
    if mean is None or variance is None:
        return Refusal(Reason.PARAMETERS_MALFORMED, f"{node.label} has no mean or no variance")
    for constant in (gamma, beta, mean, variance):
        if constant is not None and constant.shape != (affine.channels,):
            return wrong_channels(node, int(np.prod(constant.shape)), affine.channels)
    gamma = gamma or Constant.of(np.ones(mean.shape, mean.dtype))
    return gamma, beta or Constant.of(np.zeros(mean.shape, mean.dtype)), mean, variance


def evaluated(op: BatchNorm, known: Sequence[Constant | None]) -> Evaluated | None:
    """Over constants alone: the batch at hand, too, is the same in every run then."""
    data, gamma, beta, mean, variance = [*known, None, None, None, None][:5]
    if data is None:
        return None
    axis, rank = op.channel_axis, len(data.shape)
    others = tuple(i for i in range(rank) if i != axis)
    wanted = data.shape[axis : axis + 1]
    if not wanted or any(c.shape != wanted for c in (mean, variance) if c is not None):
        return None
    if not op.training and (mean is None or variance is None):
        return None

    def exact() -> NDArray[np.float64]:
        numbers = data.exact()
        affine = from_batchnorm(
            None if gamma is None else gamma.exact(),
            None if beta is None else beta.exact(),
            numbers.mean(axis=others) if op.training or mean is None else mean.exact(),
            numbers.var(axis=others) if op.training or variance is None else variance.exact(),
            op.epsilon,
        )
        if not isinstance(affine, Affine):
            return np.full(
                data.shape, np.nan
            )  # what the runtime makes of such statistics is no constant of ours
        shape = [-1 if i == axis else 1 for i in range(rank)]
        normalised = numbers * affine.scale.reshape(shape)
        normalised += affine.shift.reshape(shape)
        return normalised

    return data.shape, exact


_EPSILON = 9.999999747378752e-06
"""The default 1e-5 as an attribute of ONNX holds it, a float of 32 bits."""


def from_onnx(call: OnnxCall) -> Op | Refusal:
    """BatchNormalization, and why one is no per-channel map."""
    given = call.attributes
    data = call.input(DATA)
    if not int(given.get("spatial", 1)) and (data is None or data.rank != 2):  # [N, C] has no positions
        return Refusal(
            Reason.NOT_PER_CHANNEL, "spatial=0: it has statistics for every position, not every channel"
        )
    if len(call.inputs) < 5 or any(value is None for value in call.inputs[:5]):
        return Refusal(Reason.PARAMETERS_MALFORMED, "it has fewer than five inputs")
    if call.opset >= 14:
        training = bool(given.get("training_mode", 0))
    elif call.opset >= 7:
        # Until opset 14 the number of outputs says it: one in inference, five in training.
        training = any(value is not None for value in call.outputs[1:])
    else:
        training = not int(given.get("is_test", 0))
    return BatchNorm(epsilon=float(given.get("epsilon", _EPSILON)), training=training)


def from_aten(call: AtenCall) -> Mapped:
    """All of its forms; those without an argument ``training`` say it by their name."""
    given = call.given
    epsilon = given.get("eps", given.get("epsilon", 1e-5))
    # A flag that is computed while the model runs may be either; the fold needs it to be False.
    training = given["training"] is not False if "training" in given else "with_update" in call.name
    op = BatchNorm(float(epsilon), training=training)
    return call.reads(op, "input", "weight", "bias", "running_mean", "running_var")


RULE = Rule("batchnorm", BatchNorm, backward, forward)

_NAMES = (
    *("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
    *(
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_functional",
        "_native_batch_norm_legit_no_training",
    ),
    *("_batch_norm_no_update", "_batch_norm_with_update", "_batch_norm_with_update_functional"),
)
_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
"""The arguments of ``torch.nn.functional.batch_norm``; ``torch.batch_norm`` takes one more."""

OPERATOR = Operator(
    BatchNorm,
    RULE,
    evaluated,
    {"BatchNormalization": from_onnx},
    (Aten(_NAMES, from_aten, _FUNCTIONAL),),
)
