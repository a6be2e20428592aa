"""The errors of this room: what a user can meet while models are run, compared and measured."""

from __future__ import annotations

from convbn.errors import BadInputError, CheckFailedError, NotSupportedError

__all__ = [
    "KernelMissingError",
    "ModelFormMissingError",
    "ReferenceFailedError",
    "RuntimeMissingError",
    "SessionError",
]


class RuntimeMissingError(NotSupportedError):
    """A runtime, or the device it needs, is not on this machine."""


class ModelFormMissingError(NotSupportedError):
    """A runtime needs the model in a form (ONNX, PyTorch module) that was not given."""


class SessionError(BadInputError):
    """A runtime is there, but cannot load or run this model on these inputs."""


class KernelMissingError(SessionError):
    """A runtime has no kernel for one of the operators in one of the types the model uses."""


class ReferenceFailedError(CheckFailedError):
    """The model that is compared against cannot be run, so nothing can be proven."""
