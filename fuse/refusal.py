"""Refusals: why a BatchNorm stays. A refusal is a value that travels to the report, never a silent skip.

``docs/reasons.md`` explains each reason with an example; a test holds the page against this list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Reason", "Refusal"]


class Reason(StrEnum):
    """The documented set of reasons; the values are what reports carry."""

    TRAINING_MODE = "training-mode"
    PARAMETERS_NOT_CONSTANT = "parameters-not-constant"
    PARAMETERS_MALFORMED = "parameters-malformed"
    OVERRIDABLE = "overridable-initializer"
    BAD_STATISTICS = "bad-statistics"
    OUT_OF_RANGE = "out-of-range"
    EXTRA_OUTPUTS = "extra-outputs-used"
    NO_PRODUCER = "reads-the-input"
    PRODUCER_NOT_LINEAR = "producer-not-foldable"
    SEVERAL_READERS = "several-readers"
    OBSERVED = "observed-elsewhere"
    WEIGHT_NOT_CONSTANT = "weight-not-constant"
    NEGATIVE_SCALE = "negative-scale"
    SHIFT_INTO_PADDING = "shift-into-padding"
    ILL_CONDITIONED = "ill-conditioned"
    TOO_FAR = "too-far"
    AXIS_NOT_PROVEN = "axis-not-proven"
    NOT_PER_CHANNEL = "not-per-channel"
    OTHER_SCOPE = "other-scope"
    LOCAL_FUNCTION = "inside-a-local-function"
    PARAMETER_SHARED = "parameter-shared"
    CALLED_SEVERAL_TIMES = "called-several-times"
    HOOKED = "hooked"
    PARAMETRIZED = "parametrized"
    KERNEL_PATTERN = "kernel-pattern"
    NO_BIAS = "no-place-for-a-bias"
    NEVER_CALLED = "never-called"
    NOT_A_MODULE = "not-a-module"
    SKIPPED = "skipped-by-option"

    @property
    def explanation(self) -> str:
        """What it means, in a sentence without a full stop."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    Reason.TRAINING_MODE: "it normalises by the statistics of the batch at hand, so it is no fixed map",
    Reason.PARAMETERS_NOT_CONSTANT: "γ, β, μ or σ² is an input of the model or computed by it",
    Reason.PARAMETERS_MALFORMED: "parameters are missing or do not fit each other or the layer",
    Reason.OVERRIDABLE: "a caller may feed other parameters, since they are inputs too; --freeze says nobody does",
    Reason.BAD_STATISTICS: "a parameter holds Inf or NaN, or σ² + ε is not positive",
    Reason.OUT_OF_RANGE: "a folded number would leave the range of the type that it is stored in",
    Reason.EXTRA_OUTPUTS: "something reads its running statistics",
    Reason.NO_PRODUCER: "what would have to take its map comes from outside, and what reads its output cannot take it",
    Reason.PRODUCER_NOT_LINEAR: "it stands between operators that neither take a scale and a shift nor pass them on",
    Reason.SEVERAL_READERS: "the features that it reads are read by others that need them unchanged, such as "
    "BatchNorms with other scales and shifts, and a ReLU or the like behind it does not let all of it go on",
    Reason.OBSERVED: "features that would have to change are an output of the model",
    Reason.WEIGHT_NOT_CONSTANT: "the weight of the layer in front is an input, computed by the model, or no float",
    Reason.NEGATIVE_SCALE: "some γ is negative or 0, and only positive scales pass a ReLU or a maximum",
    Reason.SHIFT_INTO_PADDING: "its shift would lack in zeros that are put around the data, or come out uneven",
    Reason.ILL_CONDITIONED: "it could go, but not without losing digits",
    Reason.TOO_FAR: "its map would have to pass too many operators",
    Reason.AXIS_NOT_PROVEN: "shapes do not prove that it works along the axis on which the layer has its channels",
    Reason.NOT_PER_CHANNEL: "it has statistics for every position",
    Reason.OTHER_SCOPE: "the layer stands outside the branch or loop body that it stands in",
    Reason.LOCAL_FUNCTION: "it stands in a model-local function",
    Reason.PARAMETER_SHARED: "a parameter also belongs to another layer of the module",
    Reason.CALLED_SEVERAL_TIMES: "the module calls the layer or the BatchNorm more than once",
    Reason.HOOKED: "hooks would see other values",
    Reason.PARAMETRIZED: "the weight is computed from others, as by weight norm; --materialize makes it a parameter",
    Reason.KERNEL_PATTERN: "it would change an activation function that runtimes run as one kernel",
    Reason.NO_BIAS: "the layer has no place for a bias",
    Reason.NEVER_CALLED: "it was not called when the module was captured",
    Reason.NOT_A_MODULE: "the module's code calls a function there; an exported program could be changed",
    Reason.SKIPPED: "an option switches the rule off",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason, and the sentence that says what it means for the node at hand.

    Most refusals only end one attempt of many, so a sentence that takes work may be a function that makes it.
    """

    reason: Reason
    sentence: str | Callable[[], str]

    @property
    def detail(self) -> str:
        """The sentence."""
        return self.sentence if isinstance(self.sentence, str) else self.sentence()
