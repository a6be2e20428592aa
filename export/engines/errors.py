"""What can go wrong between an ONNX model and an engine."""

from __future__ import annotations

from convbn.errors import BadInputError, ConvBNError, NotSupportedError, RuntimeMissingError, UsageError

__all__ = [
    "BackendNotInstalledError",
    "BuildCancelledError",
    "BuildError",
    "CaptureError",
    "EngineIncompatibleError",
    "EngineMismatchError",
    "NoGpuError",
    "OnnxParseError",
    "PrecisionError",
    "ShapeProfileError",
    "UnsupportedOpError",
    "UnsupportedOptionError",
    "UntrustedEngineError",
]


class BackendNotInstalledError(RuntimeMissingError):
    """No TensorRT is installed, or not the one that was asked for."""


class NoGpuError(RuntimeMissingError):
    """The backend is installed, but needs a GPU that it knows."""


class PrecisionError(NotSupportedError):
    """A precision that cannot be had from this model."""


class OnnxParseError(BadInputError):
    """TensorRT's parser does not accept the model."""


class UnsupportedOpError(NotSupportedError):
    """The model holds an operator, or a form of one, that TensorRT does not implement."""


class UnsupportedOptionError(NotSupportedError):
    """An option that the backend would ignore, or does not have."""


class ShapeProfileError(UsageError):
    """The given shapes do not fit the inputs of the model."""


class BuildError(NotSupportedError):
    """TensorRT parsed the model and could not build an engine from it."""


class BuildCancelledError(ConvBNError):
    """The progress callback asked to stop."""

    exit_code = 130


class EngineMismatchError(BadInputError):
    """An engine and the sidecar beside it do not belong together."""


class EngineIncompatibleError(NotSupportedError):
    """An engine that does not load here: of another version, or for another GPU."""


class UntrustedEngineError(UsageError):
    """An engine is a program, and nobody said that it is trusted."""


class CaptureError(NotSupportedError):
    """The engine's work cannot be captured in a CUDA graph."""
