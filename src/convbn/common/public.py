"""The public functions as Python calls them: errors name arguments where the command line has options.

The rooms behind the door are shared with the command line, and their errors name its options. A missing package becomes
an error that says how to get it.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

from convbn.errors import ConvBNError, NotSupportedError

__all__ = ["logger", "missing_package", "public"]

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger(__name__.partition(".")[0])
"""What is going on, for who wants to know: ``logging.getLogger("convbn").setLevel(logging.INFO)``."""
logger.addHandler(logging.NullHandler())

_ARGUMENTS = {
    "--no-verify": "verify=False",
    "--input-shape": "input_shapes",
    "--inputs": "inputs",
    "--trust-checkpoint": "trust=True",
    "--trust-engine": "EngineFile(path, trust=True)",
    "--arch-arg": "arguments of arch",
    "--arch": "arch",
    "--freeze": "FuseOptions(freeze=True)",
    "--materialize": "FuseOptions(materialize=True)",
    "--only": "FuseOptions(only=…)",
    "--skip": "FuseOptions(skip=…)",
    "--batch": "BenchGrid(batches=…)",
    "--threads": "BenchGrid(threads=…)",
    "--runtime": "runtimes",
    "--precision": "precision",
    "--calibration": "calibration",
    "--preprocess": "preprocess",
    "--tolerance": "tolerance",
    "--force": "overwrite=True",
    "--shapes": "shapes",
    "--no-fuse": "fold=False",
    "--baseline-any-machine": "any_machine=True",
    "--baseline": "baseline",
    "--fail-if": "condition",
    "--allow-not-measured": "allow_missing=True",
    "--dynamic-batch": "dynamic_batch=True",
    "--opset": "opset",
    "--seed": "seed",
}
_OPTION = re.compile(r"--[a-z][a-z-]*")
_EXTRAS = {
    "torch": "torch",
    "onnxscript": "torch",
    "safetensors": "torch",
    "openvino": "openvino",
    "PIL": "images",
}


def public(function: F, name: str) -> F:
    """The function as the package hands it out: pickled by its public name, with errors in Python's terms."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ConvBNError as error:
            error.cause = _in_python(error.cause)
            error.source = None if error.source is None else _in_python(error.source)
            error.hint = None if error.hint is None else _in_python(error.hint)
            raise
        except ModuleNotFoundError as error:
            missing = missing_package(error)
            if missing is None:
                raise
            raise missing from error

    call.__module__, call.__qualname__ = logger.name, name
    return call  # type: ignore[return-value]  # of the same signature


def missing_package(error: BaseException) -> NotSupportedError | None:
    """The error for a package that is not there; a missing module of convbn's own is a bug."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", logger.name):
        return None
    extra = f"convbn[{_EXTRAS[package]}]" if package in _EXTRAS else logger.name
    return NotSupportedError(
        f"{package} is not installed", hint=f"pip install '{extra}'; convbn doctor shows what is missing"
    )


def _in_python(text: str) -> str:
    return _OPTION.sub(lambda found: _ARGUMENTS.get(found[0], found[0]), text)
