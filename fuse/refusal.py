"""Refusals: why a BatchNorm stays. A refusal is a value that travels to the report, never a silent skip.

``docs/reasons.md`` explains each reason with an example; a test holds the page against this list.
"""

from __future__ import annotations

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
    NO_BIAS = "no-place-for-a-bias"
    NEVER_CALLED = "never-called"
    NOT_A_MODULE = "not-a-module"
    SKIPPED = "skipped-by-option"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason, and the sentence that says what it means for the node at hand."""

    reason: Reason
    detail: str
