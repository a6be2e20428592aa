"""Errors of running, comparing and measuring models."""

from __future__ import annotations

from convbn.errors import BadInputError, CheckFailedError, NotSupportedError, RuntimeMissingError

__all__ = [
    "KernelMissingError",
    "ModelFormMissingError",
    "ReferenceFailedError",
    "RuntimeMissingError",
    "SessionError",
]


class ModelFormMissingError(NotSupportedError):
    """A runtime needs the model in a form (ONNX, PyTorch module) that was not given."""


class SessionError(BadInputError):
    """A runtime is there, but cannot load or run this model on these inputs."""


class KernelMissingError(SessionError):
    """A runtime has no kernel for one of the operators in one of the types the model uses."""


class ReferenceFailedError(CheckFailedError):
    """The model that is compared against cannot be run, so nothing can be proven."""
