"""What a model gives on calibration data, and how far that is from what another one gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from convbn.export.precision.int8.activations.probe import values
from convbn.export.precision.int8.samples import Array

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration

__all__ = ["outputs_of", "rms_error"]


def outputs_of(model: onnx.ModelProto, calibration: Calibration) -> list[list[Array]]:
    """The outputs of each sample.

    Raises:
        CalibrationError: onnxruntime cannot run the model on these inputs.
    """
    return list(values(model, None, calibration))


def rms_error(reference: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]]) -> float:
    """``‖a − b‖ / ‖a‖``, the largest over the outputs that are floats; infinite where one is not finite."""
    worst = 0.0
    for index, first in enumerate(reference[0]):
        if first.dtype.kind != "f":
            continue
        a, b = (np.concatenate([sample[index].reshape(-1) for sample in side]) for side in (reference, other))
        a, b = a.astype(np.float64), b.astype(np.float64)
        same = a == b  # infinities, for one
        gap, size = np.linalg.norm(np.where(same, 0.0, a - b)), np.linalg.norm(a[np.isfinite(a)])
        worst = max(worst, float(gap / size) if size > 0 else math.inf * float(gap > 0) if gap else 0.0)
    return worst if math.isfinite(worst) else math.inf
