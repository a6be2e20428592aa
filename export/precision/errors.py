"""What can go wrong between a float32 model and one of a lower precision."""

from __future__ import annotations

from convbn.errors import BadInputError
from convbn.export.engines.errors import PrecisionError

__all__ = ["CalibrationError", "PrecisionError", "QuantisationOrderError"]


class CalibrationError(BadInputError):
    """Calibration data that is empty, damaged, or not what the model takes."""


class QuantisationOrderError(BadInputError):
    """A model that was quantised before its BatchNorms were folded."""
